//! Packets as decoding would give them, from numbers: no frame, no bytes.

use wire::{Addr, Direction, FlowKey, PacketMeta, TcpFlags, proto};

/// Bytes of payload in a data packet.
pub(super) const DATA_BYTES: u32 = 100;
pub(super) const SYN: u8 = 0x02;
pub(super) const ACK: u8 = 0x10;
pub(super) const SYN_ACK: u8 = 0x12;
pub(super) const PSH_ACK: u8 = 0x18;
pub(super) const RST_ACK: u8 = 0x14;
/// Clients are in 10.0.0.0/8, so there can be this many flows of one service.
pub(super) const FLOWS_MAX: u64 = 1 << 40;

/// The ends of flow `number`, of some 2^40: a client's address and port, and a server's.
pub(super) fn key(number: u64, protocol: u8) -> FlowKey {
    debug_assert!(number < FLOWS_MAX);
    // Neighbours in number are none in the key, as flows that follow each other are not.
    let mixed = number.wrapping_mul(0x9e_3779_b97f_4a7d & (FLOWS_MAX - 1) | 1) & (FLOWS_MAX - 1);
    let client = v4(10, (mixed >> 16) as u32 & 0xff_ffff);
    FlowKey {
        lo: client,
        hi: v4(192, 0xa8_0000 | (number as u32 & 0xff)),
        lo_port: mixed as u16,
        hi_port: 443,
        proto: protocol,
        ..FlowKey::default()
    }
}

/// `net.x.y.z` with the low 24 bits of `host`, mapped into IPv6.
pub(super) fn v4(net: u8, host: u32) -> Addr {
    let [_, x, y, z] = host.to_be_bytes();
    let mut bytes = [0; 16];
    bytes[10..12].copy_from_slice(&[0xff, 0xff]);
    bytes[12..].copy_from_slice(&[net, x, y, z]);
    Addr(bytes)
}

/// A packet without payload, from the client or the server.
pub(super) fn packet(key: FlowKey, from_client: bool) -> PacketMeta {
    PacketMeta {
        key,
        direction: if from_client { Direction::LoToHi } else { Direction::HiToLo },
        ip_bytes: 40,
        frame_bytes: 60,
        ttl: 64,
        ..PacketMeta::EMPTY
    }
}

/// With TCP header.
pub(super) fn tcp(key: FlowKey, from_client: bool, flags: u8, seq: u32, ack: u32) -> PacketMeta {
    PacketMeta {
        seq,
        ack,
        window: 64_240,
        flags: TcpFlags(flags),
        has_tcp: true,
        payload_at: 54,
        ..packet(key, from_client)
    }
}

/// With payload.
pub(super) fn with_data(packet: PacketMeta) -> PacketMeta {
    PacketMeta {
        payload_len: DATA_BYTES,
        ip_bytes: packet.ip_bytes + DATA_BYTES,
        frame_bytes: packet.ip_bytes + DATA_BYTES + 14,
        ..packet
    }
}

/// The `nth` data packet (from 0) of a long flow that nothing disturbs: TCP for two flows in three, else UDP; client and
/// server in turn, each acknowledging all it got, so that nothing counts as lost or sent again.
pub(super) fn steady(number: u64, nth: u32) -> PacketMeta {
    let from_client = nth.is_multiple_of(2);
    if number.is_multiple_of(3) {
        return with_data(packet(key(number, proto::UDP), from_client));
    }
    let sent = |packets: u32| 1000_u32.wrapping_add(packets.wrapping_mul(DATA_BYTES));
    let (mine, other) = if from_client { (nth / 2, nth / 2) } else { (nth / 2, nth / 2 + 1) };
    with_data(tcp(key(number, proto::TCP), from_client, PSH_ACK, sent(mine), sent(other)))
}

#[cfg(test)]
mod tests {
    use super::super::Feeder;
    use super::*;
    use flowtable::{FlowRecord, FlowSink, FlowTable, FlowTableConfig};
    use std::collections::HashSet;
    use wire::Nanos;

    #[test]
    fn every_number_has_ends_of_its_own() {
        let keys: HashSet<FlowKey> = (0..200_000).map(|n| key(n, proto::TCP)).collect();
        assert_eq!(keys.len(), 200_000);
        assert!(keys.iter().all(|k| (k.lo, k.lo_port) <= (k.hi, k.hi_port)));
    }

    #[derive(Default)]
    struct Keep(Vec<FlowRecord>);

    impl FlowSink for Keep {
        fn record(&mut self, record: &FlowRecord, _: &[u8]) {
            self.0.push(*record);
        }
    }

    #[test]
    fn nothing_is_lost_or_sent_again_in_a_steady_flow() {
        let mut table = FlowTable::new(FlowTableConfig::default()).unwrap();
        let (mut kept, mut feeder) = (Keep::default(), Feeder::new(Nanos(1_000)));
        for nth in 0..50 {
            for number in 0..30 {
                feeder.push(steady(number, nth), &mut table, &mut kept);
            }
        }
        feeder.flush(&mut table, &mut kept);
        table.finish(feeder.clock, &mut kept);
        assert_eq!(kept.0.len(), 30);
        for r in &kept.0 {
            assert_eq!((r.pkts_o, r.pkts_r), (25, 25));
            assert_eq!([r.retrans_o, r.retrans_r, r.ooo_o, r.ooo_r, r.lost_o, r.lost_r, r.dup_ack_o], [0; 7], "{r:?}");
        }
    }
}
