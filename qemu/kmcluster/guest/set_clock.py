"""Carried into a virtual machine: sets its clock, the battery-backed one with it.

`set_clock.py SECONDS`, since 1970; prints {"before", "after"} in seconds since 1970.
"""

# ruff: noqa: PTH110, PTH123
import fcntl
import json
import os
import struct
import sys
import time

# linux/rtc.h: RTC_SET_TIME is _IOW('p', 0x0a, struct rtc_time) of nine ints.
RTC, RTC_SET_TIME = "/dev/rtc0", 0x4024700A


def set_rtc(seconds: float) -> None:
    """Set the battery-backed clock, if there is one; it runs in UTC."""
    if not os.path.exists(RTC):
        return
    moment = time.gmtime(seconds)
    fields = (moment.tm_sec, moment.tm_min, moment.tm_hour, moment.tm_mday, moment.tm_mon - 1, moment.tm_year - 1900)
    with open(RTC, "rb") as file:
        fcntl.ioctl(file, RTC_SET_TIME, struct.pack("9i", *fields, 0, 0, 0))


if __name__ == "__main__":
    try:
        before = time.time()
        time.clock_settime(time.CLOCK_REALTIME, int(sys.argv[1]))
        set_rtc(time.time())
        print(json.dumps({"before": before, "after": time.time()}))
    except (OSError, OverflowError) as error:
        sys.exit(f"the clock cannot be set: {error}")
