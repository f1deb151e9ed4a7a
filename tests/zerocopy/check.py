"""Judges what the guest reported: were all packets received, with the mode that was demanded in force?"""
import argparse
import json
import sys


def sections(text):
    """`=== name` begins each."""
    found, name = {}, None
    for line in text.splitlines():
        if line.startswith("=== "):
            name = line[4:].strip()
            found[name] = []
        elif name is not None:
            found[name].append(line)
    return {name: "\n".join(lines).strip() for name, lines in found.items()}


def document(found, name, wrong):
    try:
        return json.loads(found[name])
    except KeyError:
        wrong.append(f"the guest did not get as far as '{name}'")
    except json.JSONDecodeError as error:
        wrong.append(f"'{name}' is not JSON ({error}): {found[name][:300]}")
    return None


def check_status(status, sent, mode, wrong):
    """The ledger of all queues, and how the interface was read."""
    interfaces = [i for i in status.get("interfaces", []) if i["name"] == "eth1"]
    if [i["mode"] for i in interfaces] != [mode]:
        wrong.append(f"eth1 should be read in mode {mode}; status has {status.get('interfaces')}")
    for port in (port for i in interfaces for port in i["ports"]):
        if any(port["xdp_statistics"].values()):
            wrong.append(f"queue {port['queue']} has XDP_STATISTICS that are not zero: {port['xdp_statistics']}")
    queues, causes = status.get("queues", []), {}
    for queue in queues:
        if not queue["balanced"]:
            wrong.append(f"the ledger of queue {queue['queue']} does not add up: {queue}")
        for cause, count in queue["causes"].items():
            causes[cause] = causes.get(cause, 0) + count
    happened = {cause: count for cause, count in causes.items() if count}
    if happened != {"processed": sent["packets"]}:
        wrong.append(f"all {sent['packets']} packets should be processed and none lost; the ledger has {happened}")
    offered = sum(queue["offered"] for queue in queues)
    if offered != sent["packets"]:
        wrong.append(f"{sent['packets']} packets were sent, {offered} offered")
    wire_bytes = sum(queue["bytes"] for queue in queues)
    if wire_bytes != sent["bytes"]:
        wrong.append(f"{sent['bytes']} bytes were sent, {wire_bytes} offered")


def check(found, args):
    """All that is wrong."""
    wrong = [found["failed"]] if "failed" in found else []
    if "failed" not in found and "end" not in found:
        wrong.append("the guest went down before it was done, without a reason: see its console")
    sent = document(found, "sent", wrong)
    status = document(found, "status", wrong)
    flows = document(found, "flows", wrong)
    if sent is None or status is None:
        return wrong
    if sent["packets"] != args.packets:
        wrong.append(f"{args.packets} packets should be sent, {sent['packets']} were")
    check_status(status, sent, args.mode, wrong)
    # What is on disk is what was sent. Flows have the lengths of IP packets, not of frames.
    stored = [{name: sum_ for name, sum_ in sent.items() if name != "bytes"}]
    if flows is not None and flows != stored:
        wrong.append(f"the stored flows should be {stored}, they are {flows}")
    # Nothing came after the status was taken, and nothing was lost in stopping.
    last = f"{sent['packets']} packets offered, {sent['packets']} processed, 0 lost"
    if last not in found.get("log", ""):
        wrong.append(f"taphouse's log should end with '{last}'")
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", help="what the guest wrote to its second serial port")
    parser.add_argument("--mode", required=True)
    parser.add_argument("--packets", type=int, required=True)
    parser.add_argument("--prepared", type=int, default=0, help="seconds before the guest was started")
    parser.add_argument("--took", type=int, default=0, help="seconds up to its end")
    args = parser.parse_args()
    with open(args.results, encoding="utf-8", errors="replace") as file:
        found = sections(file.read().replace("\r", ""))
    wrong = check(found, args)
    if wrong:
        print("\n".join(f"FAILED: {what}" for what in wrong), file=sys.stderr)
        print(f"--- taphouse's log\n{found.get('log', '(none)')}", file=sys.stderr)
        return 1
    sent = json.loads(found["sent"])
    kernel, driver = found.get("guest", "? ?").split()
    print(
        f"ok: mode {args.mode} on {driver}, Linux {kernel}: {sent['packets']} of {sent['packets']} packets processed "
        f"({sent['bytes']} bytes, {sent['flows']} flows), 0 lost, ledger balanced; "
        f"{args.took} s, {args.took - args.prepared} of them in the guest"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
