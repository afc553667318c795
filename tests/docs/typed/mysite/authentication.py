"""A mapping of devices to users, as in docs/integration.md."""

from django.contrib.auth import get_user_model
from django.contrib.auth.models import AbstractBaseUser

from amesh_django.drf import AmeshAuthentication, DeviceUser
from amesh_django.verification import VerifiedDevice


class SensorAuthentication(AmeshAuthentication):
    require_user = True

    def get_user(self, device: VerifiedDevice) -> AbstractBaseUser | DeviceUser:
        if device.user_id is not None:
            return super().get_user(device)
        return get_user_model().objects.get(username="sensors")
