"""Plain views of Django, as in docs/guide.md and docs/integration.md."""

from django.http import HttpRequest, JsonResponse
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.http import require_POST

from amesh_django.decorators import device_required
from amesh_django.verification import DeviceHttpRequest, verified_device


@device_required
@require_POST
def event(request: DeviceHttpRequest) -> JsonResponse:
    return JsonResponse({"from": request.amesh.friendly_name, "bytes": len(request.body)})


@device_required
async def event_async(request: DeviceHttpRequest) -> JsonResponse:
    return JsonResponse({"from": request.amesh.friendly_name})


@method_decorator(device_required, name="dispatch")
class Event(View):
    def post(self, request: DeviceHttpRequest) -> JsonResponse:
        return JsonResponse({"from": request.amesh.friendly_name})


@method_decorator(device_required, name="dispatch")
class EventAsync(View):
    async def post(self, request: DeviceHttpRequest) -> JsonResponse:
        return JsonResponse({"from": request.amesh.friendly_name})


@device_required(scopes=["orders:write"])
def order_hook(request: DeviceHttpRequest) -> JsonResponse:
    return JsonResponse({"from": request.amesh.device_id})


def report(request: HttpRequest) -> JsonResponse:
    """Below the middleware."""
    return JsonResponse({"device": verified_device(request).friendly_name})
