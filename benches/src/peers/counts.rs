//! What each tool says to have counted, read from what it prints. Flows are bidirectional: where a tool knows only directions
//! or makes several records of a flow, they are put together here, so that all can be compared with the truth.

use serde::Serialize;
use serde_json::Value;
use std::collections::HashSet;

/// What a tool counted; `None` where it does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counted {
    /// Packets.
    pub packets: Option<u64>,
    /// Bidirectional flows.
    pub flows: Option<u64>,
}

impl Counted {
    fn of(packets: u64, flows: u64) -> Counted {
        Counted { packets: Some(packets), flows: Some(flows) }
    }
}

/// The number behind the first `label` in `text`; blanks may stand between.
fn number_after(text: &str, label: &str) -> Result<u64, String> {
    let at = text.find(label).ok_or_else(|| format!("no '{label}' in its output"))?;
    let rest = text[at + label.len()..].trim_start();
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().map_err(|_| format!("no number after '{label}' in its output"))
}

/// A JSON object on standard output.
pub(super) fn of_json(text: &str, packets: &str, flows: &str) -> Result<Counted, String> {
    let value: Value = serde_json::from_str(text.trim()).map_err(|e| format!("it printed no JSON: {e}"))?;
    let number = |key: &str| value[key].as_u64().ok_or_else(|| format!("no number '{key}' in its JSON"));
    Ok(Counted::of(number(packets)?, number(flows)?))
}

/// "Processed 300000 packets into 10000 flows:", with `--verbose`.
pub(super) fn of_yaf(log: &str) -> Result<Counted, String> {
    Ok(Counted::of(number_after(log, "Processed ")?, number_after(log, "packets into ")?))
}

/// "Packets processed: 300000" and "Flows expired: 10000 (0 forced)", at the end.
pub(super) fn of_softflowd(text: &str) -> Result<Counted, String> {
    Ok(Counted::of(number_after(text, "Packets processed:")?, number_after(text, "Flows expired:")?))
}

/// "Total: Processed: 300000, skipped: 0"; and from `nfdump -B`, which puts directions together, a line a flow.
pub(super) fn of_nfpcapd(text: &str, biflows: &str) -> Result<Counted, String> {
    let flows = biflows.lines().filter(|line| !line.trim().is_empty()).count() as u64;
    Ok(Counted::of(number_after(text, "Total: Processed:")?, flows))
}

/// A line a flow; "read 1 file, 300000 packets".
pub(super) fn of_suricata(events: &str, log: &str) -> Result<Counted, String> {
    let flows = events.lines().filter(|line| line.contains("\"event_type\":\"flow\"")).count() as u64;
    Ok(Counted::of(number_after(log, "read 1 file,")?, flows))
}

/// A head line, then "SRC_IP,DST_IP,SRC_PORT,DST_PORT,PROTOCOL,PACKETS,BYTES" for each direction.
pub(super) fn of_pmacctd(csv: &str) -> Result<Counted, String> {
    let mut lines = csv.lines();
    let head: Vec<&str> = lines.next().unwrap_or_default().split(',').collect();
    let column =
        |name: &str| head.iter().position(|h| *h == name).ok_or_else(|| format!("no column {name} in what it printed"));
    let columns = ["SRC_IP", "SRC_PORT", "DST_IP", "DST_PORT", "PROTOCOL", "PACKETS"].map(column);
    let [src, src_port, dst, dst_port, protocol, packets] = columns;
    let (src, src_port, dst, dst_port) = (src?, src_port?, dst?, dst_port?);
    let (protocol, packets) = (protocol?, packets?);
    let (mut flows, mut sum) = (HashSet::new(), 0_u64);
    for line in lines {
        let fields: Vec<&str> = line.split(',').collect();
        let field = |at: usize| fields.get(at).copied().ok_or_else(|| format!("it printed '{line}'"));
        let (a, b) = ((field(src)?, field(src_port)?), (field(dst)?, field(dst_port)?));
        flows.insert((field(protocol)?, a.min(b), a.max(b)));
        sum += field(packets)?.parse::<u64>().map_err(|_| format!("it printed '{line}'"))?;
    }
    Ok(Counted::of(sum, flows.len() as u64))
}

/// `racount -M proto` over merged records: a line a protocol behind "Protocol Summary", name, records and packets first.
/// Records of Argus about itself belong to no protocol.
pub(super) fn of_argus(text: &str) -> Result<Counted, String> {
    let (_, summary) = text.split_once("Protocol Summary").ok_or("no summary in the output of racount")?;
    let mut counted = Counted::of(0, 0);
    for line in summary.lines().filter(|line| !line.trim().is_empty()) {
        let numbers: Vec<u64> = line.split_ascii_whitespace().skip(1).map_while(|n| n.parse().ok()).collect();
        let [flows, packets, ..] = numbers[..] else { return Err(format!("racount printed '{line}'")) };
        counted = Counted::of(counted.packets.unwrap_or_default() + packets, counted.flows.unwrap_or_default() + flows);
    }
    Ok(counted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tool_is_understood() {
        let all = [
            of_json("{\"flows\": 7, \"packets\": 30}\n", "packets", "flows"),
            of_yaf("[12:00] Processed 30 packets into 7 flows:\n  Mean flow rate 3/s.\n"),
            of_softflowd("Packets processed: 30\nFragments: 0\nFlows expired: 7 (0 forced)\nFlows exported: 14\n"),
            of_nfpcapd("Total: Processed: 30, skipped: 0\n", "TCP\nTCP\nTCP\nTCP\nUDP\nUDP\nUDP\n\n"),
            of_suricata(
                &"{\"event_type\":\"flow\",\"proto\":\"TCP\"}\n".repeat(7),
                "Notice: pcap: read 1 file, 30 packets, 79 bytes",
            ),
            of_argus(
                "racount   records     total_pkts     src_pkts\n    sum   8       30     14\nProtocol Summary\n    \
                 tcp   4        20       9\n    udp   3        10       5\n",
            ),
        ];
        for counted in all {
            assert_eq!(counted, Ok(Counted::of(30, 7)));
        }
    }

    #[test]
    fn directions_of_pmacctd_are_put_together() {
        let csv = "SRC_IP,DST_IP,SRC_PORT,DST_PORT,PROTOCOL,PACKETS,BYTES\n\
                   10.0.0.1,10.0.0.2,1024,80,tcp,4,400\n10.0.0.2,10.0.0.1,80,1024,tcp,3,300\n\
                   10.0.0.1,10.0.0.2,1024,80,udp,1,60\n";
        assert_eq!(of_pmacctd(csv), Ok(Counted::of(8, 2)));
        assert!(of_pmacctd("").unwrap_err().contains("SRC_IP"));
        assert!(of_pmacctd("SRC_IP,DST_IP,SRC_PORT,DST_PORT,PROTOCOL,PACKETS\n1,2\n").is_err());
    }

    #[test]
    fn other_output_is_an_error_that_says_what_is_missing() {
        assert!(of_json("", "packets", "flows").is_err());
        assert!(of_json("{\"packets\":1}", "packets", "flows").unwrap_err().contains("flows"));
        assert!(of_softflowd("Packets processed: many").unwrap_err().contains("Packets processed:"));
        assert!(of_argus("Protocol Summary\n tcp few\n").is_err());
        assert!(of_yaf("yaf starting").is_err());
    }
}
