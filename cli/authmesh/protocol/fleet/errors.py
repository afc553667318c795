"""Every refusal between a hub and its servers: its code, its HTTP status, and what to do next (docs/fleet.md)."""

from __future__ import annotations

from authmesh.protocol.errors import InvalidInput, RequestError, Run


class FeedRefused(RequestError):
    """The message of a hub, or the question of a server, is refused. Nothing was changed."""

    code = "feed_refused"
    status = 403
    default_message = "The message is refused. Nothing was changed."


class MalformedFeed(FeedRefused):
    """The body is not a message of the protocol."""

    code = "malformed_feed"
    status = 400
    default_message = "The body is not a message of the feed. Nothing was changed."


class WrongAudience(FeedRefused):
    """The message is meant for another server."""

    code = "wrong_audience"
    default_message = "The message is meant for another server. Nothing was changed."


class NotAHub(FeedRefused):
    """The device that signed the message is not a hub of this server, or names another device as its author."""

    code = "not_a_hub"
    default_message = "The device that signed the message is not a hub of this server. Nothing was changed."


class PermissionMissing(FeedRefused):
    """The hub does not have the permission that the message needs."""

    code = "permission_missing"
    default_message = "The hub does not have the permission for this. Nothing was changed."


class NotFollowing(FeedRefused):
    """The device that asks for the feed is not a server that this hub carries changes to."""

    code = "not_following"
    default_message = "This device is not a server of this hub."


class OlderEpoch(FeedRefused):
    """The hub names an epoch that its list had before: an older list was restored there."""

    code = "older_epoch"
    default_message = "The list of the hub is older than one that this server knows. Nothing was changed."
    default_hint = ("At the hub, run ", Run("integrity", "--reseal"), ".")


class TrustIsStale(RequestError):
    """A hub has been silent for so long that the settings of the server reject all requests."""

    code = "trust_is_stale"
    status = 503
    default_message = "This server has not heard from its hub for too long to know which devices are still trusted."
    default_hint = ("To see when each hub was heard last, run ", Run("hubs"), ".")


class UnverifiedMessage(InvalidInput):
    """An answer or a list was not signed by the device that it is from, or not for this question."""

    code = "unverified_message"
    default_message = "The message was not signed by the expected device. Nothing was changed."
    default_hint = "Check the address, and that nothing in between rewrites messages."
