"""Counts the flows of a capture with nfstream: one meter, no dissection, no statistics."""

import json
import sys

from nfstream import NFStreamer


def main() -> None:
    flows = packets = 0
    streamer = NFStreamer(
        source=sys.argv[1],
        idle_timeout=3600,
        active_timeout=7200,
        n_dissections=0,
        statistical_analysis=False,
        n_meters=1,
    )
    for flow in streamer:
        flows += 1
        packets += flow.bidirectional_packets
    print(json.dumps({"flows": flows, "packets": packets}))


if __name__ == "__main__":
    main()
