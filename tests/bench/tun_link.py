"""A bad line below IP, for UDP and TCP alike: a TUN device that leads back to this machine.

What is sent to 10.0.0.2 comes back from 10.0.0.2 to 10.0.0.1, `delay_ms` later, unless it is lost:
the two addresses of a packet change places, which leaves its checksums right. So a server that
listens on 10.0.0.1 is reached at 10.0.0.2 over the line, and its answers take the line back.
10.0.0.3 is the same line without UDP. Must run in a network namespace of its own, as its root.

Usage: tun_link.py DELAY_MS LOSS SEED. Says "ready" when the line is up, ends with its stdin.
"""

import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import sys
import time

TUNSETIFF = 0x400454CA
IFF_TUN = 0x0001
IFF_NO_PI = 0x1000
UDP = 17
WITHOUT_UDP = bytes([10, 0, 0, 3])


def open_device():
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", b"line0", IFF_TUN | IFF_NO_PI))
    for command in (
        "link set lo up",
        "addr add 10.0.0.1/24 dev line0",
        # All that waits at once; what it drops would not be counted as lost.
        "link set line0 mtu 1500 txqueuelen 10000 up",
    ):
        subprocess.run(["ip", *command.split()], check=True)
    return device


def main():
    delay, loss, seed = float(sys.argv[1]) / 1000, float(sys.argv[2]), int(sys.argv[3])
    chance = random.Random(seed)
    device = open_device()
    print("ready", flush=True)
    under_way = []
    number = 0
    while True:
        now = time.monotonic()
        while under_way and under_way[0][0] <= now:
            _, _, packet = heapq.heappop(under_way)
            try:
                os.write(device, packet)
            except OSError:
                pass
        wait = max(0.0, under_way[0][0] - now) if under_way else None
        readable, _, _ = select.select([device, sys.stdin], [], [], wait)
        if sys.stdin in readable and not sys.stdin.buffer.read1(4096):
            return
        if device not in readable:
            continue
        now = time.monotonic()
        while True:
            try:
                packet = os.read(device, 2048)
            except BlockingIOError:
                break
            # IPv4 alone; of that, UDP not on the second line.
            if packet[0] >> 4 != 4:
                continue
            source, target = packet[12:16], packet[16:20]
            if packet[9] == UDP and WITHOUT_UDP in (source, target):
                continue
            if chance.random() < loss:
                continue
            number += 1
            turned = packet[:12] + target + source + packet[20:]
            heapq.heappush(under_way, (now + delay, number, turned))


if __name__ == "__main__":
    main()
