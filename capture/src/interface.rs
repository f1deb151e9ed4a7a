//! Opening an interface: zero-copy first, then native copy, then generic mode, then a packet socket; each step that
//! fails is told with its reason.

use crate::af_xdp::{CopyMode, Umem, UmemChoice, XdpOptions, XskSocket, XskSource};
use crate::bpf::{AttachMode, AttachOptions, Attached};
use crate::filter::Filter;
use crate::nic::{self, Interface, Promiscuous};
use crate::port::{Clock, Mode, Port};
use crate::sieve::SievedQueue;
use crate::supervise::NicWatch;
use crate::tap::QueueSource;
use crate::{AfPacketOptions, AfPacketSource, SourceError};
use std::sync::Arc;
use wire::TapId;

/// How an interface is to be read.
#[derive(Clone, Debug)]
pub struct InterfaceOptions {
    /// The mode that is demanded; `None` for the best that works.
    pub mode: Option<Mode>,
    /// Take packets away from the host even where it needs them (AF_XDP on an interface with an address).
    pub force: bool,
    /// Whether to receive frames that are for other stations, too: the point of a tap.
    pub promiscuous: bool,
    /// Whether to ask the driver for the card's receive times.
    pub hardware_timestamps: bool,
    /// What to leave out.
    pub filter: Option<Filter>,
    /// Whether packets may span several buffers of AF_XDP; `None` where that is needed or costs nothing.
    pub multi_buffer: Option<bool>,
    /// Memory and rings of AF_XDP; `multi_buffer` above holds.
    pub xdp: XdpOptions,
    /// Ring of the packet socket.
    pub packet: AfPacketOptions,
}

/// An interface that is being read.
pub struct OpenInterface {
    /// The queues, each with the number of the worker that is to read it.
    pub queues: Vec<(usize, Box<dyn QueueSource>)>,
    /// The same queues as seen from outside.
    pub ports: Vec<Arc<Port>>,
    /// How it is read.
    pub mode: Mode,
    /// What was tried before, and what to know of it: one sentence each.
    pub notes: Vec<String>,
    /// As it was found.
    pub interface: Interface,
    /// Queues packets can arrive on.
    pub queue_count: u32,
    /// Keep with the queues: dropping it ends promiscuous mode.
    pub promiscuous: Option<Promiscuous>,
    /// What the card itself loses, to be asked for now and then.
    pub nic: Option<NicWatch>,
}

/// Queues that an interface would be read by in the best mode: the number of workers its tap can use. `None` where the
/// number is free, since a packet socket deals by itself.
///
/// # Errors
/// No such interface.
pub fn queues_of(name: &str, options: &InterfaceOptions) -> Result<Option<u32>, SourceError> {
    let interface = nic::interface(name)?;
    match options.wants_packet_socket(&interface) {
        true => Ok(None),
        false => Ok(Some(nic::receive_queues(&interface)?)),
    }
}

/// Opens all queues of an interface and deals them to `workers` workers: queue q goes to worker q modulo their number.
///
/// # Errors
/// The demanded mode does not work, or none does.
pub fn open_interface(
    name: &str,
    tap: TapId,
    workers: usize,
    options: &InterfaceOptions,
) -> Result<OpenInterface, SourceError> {
    let interface = nic::interface(name)?;
    if !interface.is_up {
        return Err(SourceError::InterfaceDown { name: name.to_owned() });
    }
    let opening = Opening { interface, tap, workers: workers.max(1), options };
    let mut notes = Vec::new();
    let queues = match options.mode {
        None => opening.best(&mut notes),
        Some(Mode::AfPacket) => opening.packet_socket(),
        Some(mode) => match opening.interface.carries_host_traffic().filter(|_| !options.force) {
            Some(reason) => Err(SourceError::HostTraffic { name: name.to_owned(), reason: reason.to_owned() }),
            None => opening.xdp(mode, &mut notes),
        },
    };
    let Queues { mode, queues, ports, promiscuous, nic } = queues?;
    let queue_count = ports.len() as u32;
    Ok(OpenInterface { queues, ports, mode, notes, interface: opening.interface, queue_count, promiscuous, nic })
}

impl InterfaceOptions {
    fn wants_packet_socket(&self, interface: &Interface) -> bool {
        match self.mode {
            Some(mode) => mode == Mode::AfPacket,
            None => !self.force && interface.carries_host_traffic().is_some() || !is_ethernet(interface),
        }
    }
}

/// AF_XDP reads what begins with an Ethernet header.
fn is_ethernet(interface: &Interface) -> bool {
    interface.hardware_type == libc::ARPHRD_ETHER
}

/// Ethernet header with two VLAN tags.
const ETHERNET_BYTES_MAX: u32 = 22;

/// All queues of an interface, open.
struct Queues {
    mode: Mode,
    queues: Vec<(usize, Box<dyn QueueSource>)>,
    ports: Vec<Arc<Port>>,
    promiscuous: Option<Promiscuous>,
    nic: Option<NicWatch>,
}

struct Opening<'a> {
    interface: Interface,
    tap: TapId,
    workers: usize,
    options: &'a InterfaceOptions,
}

impl Opening<'_> {
    fn best(&self, notes: &mut Vec<String>) -> Result<Queues, SourceError> {
        let name = &self.interface.name;
        if self.options.wants_packet_socket(&self.interface) {
            let reason = self.interface.carries_host_traffic();
            let reason = reason.unwrap_or("its frames do not begin with an Ethernet header");
            notes.push(format!("not AF_XDP on {name}: {reason}"));
            return self.packet_socket();
        }
        for mode in [Mode::ZeroCopy, Mode::Copy, Mode::Generic] {
            match self.xdp(mode, notes) {
                Ok(queues) => return Ok(queues),
                Err(error) => {
                    notes.push(format!("not {mode} on {name}: {error}"));
                    if error.is_permission() {
                        break;
                    }
                }
            }
        }
        self.packet_socket()
    }

    /// All queues through AF_XDP in one mode, or none of them.
    fn xdp(&self, mode: Mode, notes: &mut Vec<String>) -> Result<Queues, SourceError> {
        let (first, second) = self.multi_buffer(mode);
        match (self.xdp_queues(mode, first, notes), second) {
            (Err(_), Some(second)) => self.xdp_queues(mode, second, notes),
            (opened, _) => opened,
        }
    }

    /// Whether to try with packets that span several buffers, and then without. The kernel's copy has no limit of its own
    /// to what the sender offloads, so there they are always welcome; drivers rarely have them in zero-copy mode.
    fn multi_buffer(&self, mode: Mode) -> (bool, Option<bool>) {
        let frame_max = self.interface.mtu + ETHERNET_BYTES_MAX;
        let fits = frame_max <= self.options.xdp.packet_bytes_max();
        match (self.options.multi_buffer, mode) {
            (Some(multi_buffer), _) => (multi_buffer, None),
            (None, Mode::ZeroCopy) if fits => (false, None),
            (None, _) if fits => (true, Some(false)),
            (None, _) => (true, None),
        }
    }

    fn xdp_queues(&self, mode: Mode, multi_buffer: bool, notes: &mut Vec<String>) -> Result<Queues, SourceError> {
        let (options, name, interface) = (self.options, &self.interface.name, &self.interface);
        let count = nic::receive_queues(interface)?;
        let promiscuous = options.promiscuous.then(|| Promiscuous::enable(interface)).transpose()?;
        let early = options.filter.as_ref().and_then(Filter::early);
        let attach = AttachOptions {
            mode: if mode == Mode::Generic { AttachMode::Generic } else { AttachMode::Native },
            queues: count,
            early: early.as_ref(),
            timestamps: options.hardware_timestamps && mode != Mode::Generic,
        };
        let program = Arc::new(Attached::attach(interface.index, &attach)?);
        let nic = NicWatch::open(interface)?;
        let xdp = XdpOptions { multi_buffer: multi_buffer && program.frags(), ..options.xdp };
        let copy = if mode == Mode::ZeroCopy { CopyMode::ZeroCopy } else { CopyMode::Copy };
        let totals = nic.totals();
        let mut open = Queues { mode, queues: Vec::new(), ports: Vec::new(), promiscuous, nic: Some(nic) };
        let shared = self.shared_memory(count, &xdp)?;
        for queue in 0..count {
            let worker = queue as usize % self.workers;
            let umem = shared.get(worker).map_or(UmemChoice::Own, UmemChoice::Shared);
            let socket = XskSocket::open(name, interface.index, queue, copy, &xdp, interface.numa_node, umem)?;
            let in_force = if socket.is_zero_copy() { Mode::ZeroCopy } else { mode };
            let mut port = Port::new(name, queue, worker, in_force, Clock::Batch);
            port.pages = socket.page_kind().name().to_owned();
            port.filtered_early = early.is_some() && program.early_refused().is_none();
            if queue == 0 && !socket.page_kind().is_huge() && options.xdp.huge_pages {
                notes.push(format!("{name} is read into {}", socket.page_kind()));
            }
            if let (Some(node), None) = (interface.numa_node, socket.numa_node()) {
                notes.push(format!(
                    "{name} queue {queue}: its packet memory is not on NUMA node {node}, where the card is"
                ));
            }
            let port = Arc::new(port);
            let totals = (queue == 0).then(|| totals.clone());
            let source = XskSource::start(self.tap, port.clone(), socket, program.clone(), totals)?;
            open.queues.push((worker, self.sieved(Box::new(source))));
            open.ports.push(port);
        }
        self.remarks(&program, xdp.multi_buffer, notes);
        Ok(open)
    }

    /// One packet memory for each worker that reads several queues: one mapping, so fewer TLB entries. None where each
    /// worker has one queue.
    fn shared_memory(&self, queues: u32, xdp: &XdpOptions) -> Result<Vec<Umem>, SourceError> {
        let queues = queues as usize;
        if queues <= self.workers {
            return Ok(Vec::new());
        }
        let umem = |worker| {
            let own = (worker..queues).step_by(self.workers).count() as u32;
            Umem::new(xdp, own, self.interface.numa_node)
        };
        let made = (0..self.workers).map(umem).collect::<Result<Vec<_>, _>>();
        made.map_err(|source| SourceError::System {
            name: self.interface.name.clone(),
            call: "mmap of the packet memory",
            source,
        })
    }

    /// What works differently from what one might expect.
    fn remarks(&self, program: &Attached, multi_buffer: bool, notes: &mut Vec<String>) {
        let (name, mtu, fits) = (&self.interface.name, self.interface.mtu, self.options.xdp.packet_bytes_max());
        if !multi_buffer && mtu + ETHERNET_BYTES_MAX > fits {
            notes.push(format!(
                "{name} has an MTU of {mtu}, and without multi_buffer packets of more than {fits} bytes are lost (and \
                 counted as rx_dropped): a larger frame, multi_buffer, or a smaller MTU"
            ));
        }
        if let Some(reason) = program.timestamps_refused() {
            notes.push(format!("no receive times of the card on {name}: {reason}"));
        }
        if let Some(reason) = program.early_refused() {
            notes.push(format!("the filter of {name} does not fit into the driver, and works behind it: {reason}"));
        }
        // An interface that cannot be asked strips nothing that we could know of.
        if let Ok(Some(true)) = nic::rx_vlan_offload(&self.interface) {
            notes.push(format!(
                "{name} may take VLAN tags off before AF_XDP sees them: ethtool -K {name} rxvlan off keeps them"
            ));
        }
    }

    fn packet_socket(&self) -> Result<Queues, SourceError> {
        let mut packet = self.options.packet;
        packet.promiscuous = self.options.promiscuous;
        let mut group = AfPacketSource::open_group(&self.interface.name, self.tap, &packet, self.workers)?;
        // Tunnels and the like have no card to ask.
        let nic = NicWatch::open(&self.interface).ok();
        if let (Some(first), Some(nic)) = (group.first_mut(), &nic) {
            first.count_nic(nic.totals());
        }
        let port = |queue| Port::new(&self.interface.name, queue as u32, queue, Mode::AfPacket, Clock::Kernel);
        Ok(Queues {
            mode: Mode::AfPacket,
            ports: (0..group.len()).map(|queue| Arc::new(port(queue))).collect(),
            queues: group.into_iter().map(|s| self.sieved(Box::new(s))).enumerate().collect(),
            promiscuous: None,
            nic,
        })
    }

    /// Behind the filter, if there is one. The program in the driver may keep more than the filter wants.
    fn sieved(&self, queue: Box<dyn QueueSource>) -> Box<dyn QueueSource> {
        match &self.options.filter {
            Some(filter) => Box::new(SievedQueue::new(queue, filter.clone())),
            None => queue,
        }
    }
}
