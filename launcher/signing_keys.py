"""`boxoffice keys rotate`: a new key for access tokens; auth_svc, if it runs, notices it."""

from datetime import timedelta

from auth_svc import keys
from auth_svc.settings import Settings
from launcher.errors import LaunchError
from launcher.settings_listing import load
from mesh.clock import system_clock


def rotate() -> str:
    """Adds a key to the folder of the settings. Returns what happens next, for people."""
    settings = load(Settings)
    lead = timedelta(seconds=settings.key_publish_seconds)
    try:
        signs = keys.rotate(settings.keys_folder, lead=lead, now=system_clock())
    except keys.RotationError as error:
        raise LaunchError("The keys were not rotated.", str(error)) from error
    life = timedelta(seconds=settings.access_token_ttl_seconds)
    return (
        f"A new key is in {settings.keys_folder}. It signs from {signs:%H:%M:%S} UTC on;"
        f" the one before is removed about {signs + life:%H:%M:%S} UTC, with its last token."
    )
