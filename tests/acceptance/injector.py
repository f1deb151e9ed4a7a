"""Sends length-prefixed frames from standard input out of a device: injector.py DEVICE [CORE]."""
import errno
import os
import socket
import struct
import sys

SOL_PACKET, PACKET_QDISC_BYPASS = 263, 20

sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
sender.bind((sys.argv[1], 0))
if len(sys.argv) > 2:
    os.sched_setaffinity(0, {int(sys.argv[2])})
    sender.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
data = sys.stdin.buffer.read()
at = 0
while at < len(data):
    length = struct.unpack_from("<I", data, at)[0]
    try:
        sender.send(data[at + 4 : at + 4 + length])
    except OSError as error:
        # The far end's queue is full: lost on the wire, as far as the receiver is concerned.
        if error.errno != errno.ENOBUFS:
            raise
    at += 4 + length
