"""`boxoffice keys rotate`: adds a key for access tokens; a running auth_svc loads it by itself."""

from datetime import timedelta

from auth_svc import keys
from auth_svc.settings import Settings
from launcher.errors import LaunchError
from launcher.settings_listing import load
from mesh.clock import system_clock


def rotate() -> str:
    """Adds a key to the keys folder. Returns a message with the times of the next steps."""
    settings = load(Settings)
    lead = timedelta(seconds=settings.key_publish_seconds)
    try:
        signs = keys.rotate(settings.keys_folder, lead=lead, now=system_clock())
    except keys.RotationError as error:
        raise LaunchError("The keys were not rotated.", str(error)) from error
    life = timedelta(seconds=settings.access_token_ttl_seconds)
    return (
        f"Added a key to {settings.keys_folder}. It signs tokens from {signs:%H:%M:%S} UTC. The"
        f" previous key is removed at about {signs + life:%H:%M:%S} UTC, when its last token expires."
    )
