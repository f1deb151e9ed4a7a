//! One worker: flow table, sketches and detector feed over decoded packets, run to completion.

use super::ingest::Stage;
use super::outlet::Outlet;
use super::settings::LiveSettings;
use super::shared::WorkerGauges;
use flowtable::{FlowTable, FlowTableConfig, FlowTableError};
use std::sync::Arc;
use wire::{Nanos, PacketMeta};

pub(crate) struct Worker {
    table: FlowTable,
    outlet: Outlet,
    gauges: Arc<WorkerGauges>,
    settings: Arc<LiveSettings>,
    settings_seen: u64,
}

impl Worker {
    pub(super) fn new(
        config: FlowTableConfig,
        outlet: Outlet,
        gauges: Arc<WorkerGauges>,
        settings: Arc<LiveSettings>,
    ) -> Result<Worker, FlowTableError> {
        let table = FlowTable::new(config)?;
        gauges.capacity(u64::from(config.flows_max));
        Ok(Worker { table, outlet, gauges, settings, settings_seen: 0 })
    }

    /// Ends every flow, closes the last tick and lets go of the rings, which tells writer and detectors.
    pub(crate) fn finish(mut self, clock: Nanos) {
        // A whole table is far more than a ring holds.
        self.outlet.wait_when_full();
        self.outlet.advance(clock);
        self.table.finish(clock, &mut self.outlet);
        self.gauges.publish(&self.table.counts(), clock);
        self.outlet.finish(clock);
    }

    /// Packets of one tick.
    fn run(&mut self, packets: &[PacketMeta]) {
        self.outlet.traffic(packets);
        self.table.process(packets, &mut self.outlet);
    }
}

impl Stage for Worker {
    fn packets(&mut self, packets: &[PacketMeta]) -> usize {
        let (Some(first), Some(last)) = (packets.first(), packets.last()) else { return 0 };
        if self.settings.changed(&mut self.settings_seen) {
            self.settings.apply(&mut self.table);
        }
        if detect::tick_of(first.clock) == detect::tick_of(last.clock) {
            self.outlet.advance(first.clock);
            self.run(packets);
        } else {
            for run in packets.chunk_by(|a, b| detect::tick_of(a.clock) == detect::tick_of(b.clock)) {
                self.outlet.advance(run[0].clock);
                self.run(run);
            }
        }
        self.gauges.publish(&self.table.counts(), last.clock);
        packets.len()
    }

    fn advance(&mut self, clock: Nanos) {
        self.outlet.advance(clock);
        self.table.advance(clock, &mut self.outlet);
        self.gauges.publish(&self.table.counts(), clock);
    }
}
