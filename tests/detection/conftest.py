"""Two CPU devices."""

from helpers.devices import one_device, two_devices  # noqa: F401 (fixtures)
