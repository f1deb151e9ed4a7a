use super::client::{CallError, Client, Partial};
use super::error::Subject;
use super::link::{LinkCounters, get_link};
use super::loss::{Driver, Use, Values};
use super::netlink::{Attributes, text};
use super::queues::{Asked, NETDEV_FAMILY};
use super::sys::{EthtoolList, GuardedBuffer, ethtool_list, ethtool_statistics_count};
use super::{Interface, MissedSource, NicError, PeerLink};
use std::io;

/// Most counters of a driver that are read. A NIC with a hundred queues has some five thousand.
const COUNTERS_MAX: u32 = 1 << 16;
/// Bytes of a counter's name, ETH_GSTRING_LEN.
const NAME_BYTES: usize = 32;
/// Header of `struct ethtool_gstrings`.
const STRINGS_HEADER_BYTES: usize = 12;
/// Header of `struct ethtool_stats`.
const STATISTICS_HEADER_BYTES: usize = 8;
/// How often a list of counters that changes while it is read is read again.
const ATTEMPTS_MAX: u32 = 3;

/// linux/netdev.h
const NETDEV_CMD_QSTATS_GET: u8 = 12;
const NETDEV_A_QSTATS_IFINDEX: u16 = 1;
const NETDEV_A_QSTATS_RX_HW_DROP_OVERRUNS: u16 = 14;

/// Counters of an interface since its driver was loaded. They can begin at 0 again, when the driver resets the hardware:
/// whoever adds up differences takes a smaller number as a new beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicCounters {
    /// Good packets received, those included that the host dropped afterwards.
    pub rx_packets: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Packets that the hardware lost because the host gave it no buffers in time, each counted once.
    pub rx_missed: u64,
    /// Which counter `rx_missed` is.
    pub missed_source: MissedSource,
    /// Bad packets: length, CRC, alignment. None of them is in `rx_packets`.
    pub rx_errors: u64,
    /// Packets with a wrong frame check sequence; part of `rx_errors`.
    pub rx_crc_errors: u64,
    /// Packets of invalid length; part of `rx_errors`.
    pub rx_length_errors: u64,
    /// Packets received but not processed by the host, for want of memory or a protocol. On some drivers the hardware's
    /// address filter is in here, too.
    pub rx_dropped: u64,
    /// Packets dropped on their way out.
    pub tx_dropped: u64,
    /// The driver's counters that mean loss (`ethtool -S`), in its order. They overlap with each other and with the above:
    /// for people to read, not to add up.
    pub details: Vec<(String, u64)>,
}

/// Reads the counters of an interface, again and again.
///
/// The descriptors stay with the network namespace and need no privilege, but for
/// [`peer_dropped`](CounterReader::peer_dropped). Costs three system calls or so a reading, and a wait for the driver: some ask
/// the hardware. Once a second is plenty.
pub struct CounterReader {
    name: String,
    index: u32,
    driver: &'static Driver,
    peer: Option<PeerLink>,
    route: Client,
    /// `None` where kernel or driver has no queue statistics.
    queues: Option<Asked>,
    /// `None` where the driver has no counters of its own.
    own: Option<OwnCounters>,
}

impl CounterReader {
    /// Learns which counters the interface has.
    ///
    /// # Errors
    /// [`Gone`](NicError::Gone), [`TooManyCounters`](NicError::TooManyCounters), or where the kernel does not answer.
    pub fn open(interface: &Interface) -> Result<CounterReader, NicError> {
        let subject = Subject::Interface(&interface.name);
        let driver = Driver::by_name(interface.driver.as_deref());
        let route = Client::route().map_err(|e| NicError::new(subject, e))?;
        let own = OwnCounters::learn(&route, interface.index, driver).map_err(|e| e.on(&interface.name))?;
        let mut queues = Asked::open(&NETDEV_FAMILY).ok();
        if queues.as_mut().is_some_and(|asked| queue_overruns(asked, interface.index).is_err()) {
            queues = None;
        }
        let (name, index, peer) = (interface.name.clone(), interface.index, interface.peer);
        Ok(CounterReader { name, index, driver, peer, route, queues, own })
    }

    /// The counters now.
    ///
    /// # Errors
    /// [`Gone`](NicError::Gone), or where the kernel does not answer.
    pub fn read(&mut self) -> Result<NicCounters, NicError> {
        let own = self.read_own()?;
        let subject = Subject::Interface(&self.name);
        let link = get_link(&mut self.route, self.index, None).map_err(|e| NicError::new(subject, e))?;
        let queues = match &mut self.queues {
            Some(asked) => queue_overruns(asked, self.index).map_err(|e| NicError::new(subject, e))?,
            None => None,
        };
        let LinkCounters(c) = link.counters;
        let values = Values { missed: c[15], fifo: c[14], dropped: c[6] };
        let (rx_missed, missed_source) = self.driver.missed(own.missed, queues, values);
        Ok(NicCounters {
            rx_packets: c[0],
            rx_bytes: c[2],
            rx_missed,
            missed_source,
            rx_errors: c[4],
            rx_crc_errors: c[12],
            rx_length_errors: c[10],
            rx_dropped: c[6],
            tx_dropped: c[7],
            details: own.details,
        })
    }

    /// Packets that the other end of a pair (veth) dropped on their way here, because this end did not take them: the one
    /// place where such a loss is counted. `None` where there is no other end, or where the process may not look: an end
    /// in another network namespace takes CAP_NET_ADMIN there, at each call.
    pub fn peer_dropped(&mut self) -> Option<u64> {
        let peer = self.peer?;
        let link = get_link(&mut self.route, peer.index, peer.namespace).ok()?;
        // An index is used again after its interface is gone: make sure that it is the other end that looks back.
        (link.is_pair() && link.link == Some(self.index)).then_some(link.counters.0[7])
    }

    fn read_own(&mut self) -> Result<OwnReading, NicError> {
        for _ in 0..ATTEMPTS_MAX {
            let Some(own) = &mut self.own else { return Ok(OwnReading::default()) };
            match own.read(&self.route, self.index) {
                Ok(read) => return Ok(read),
                // The number of queues changed, and the counters with it.
                Err(OwnError::Changed) => {
                    self.own =
                        OwnCounters::learn(&self.route, self.index, self.driver).map_err(|e| e.on(&self.name))?;
                }
                Err(e) => return Err(e.on(&self.name)),
            }
        }
        Err(OwnError::Changed.on(&self.name))
    }
}

/// Counters of the driver's own that are of use here.
struct OwnCounters {
    /// All that it has.
    count: u32,
    /// Place among all, name and meaning of each that is read.
    chosen: Vec<(usize, String, Use)>,
    buffer: GuardedBuffer,
}

/// What the driver's own counters say.
#[derive(Default)]
struct OwnReading {
    /// Sum of those that are loss, where it has any.
    missed: Option<u64>,
    /// All that are shown.
    details: Vec<(String, u64)>,
}

/// Why the driver's counters could not be read.
enum OwnError {
    /// There are more or less of them than before.
    Changed,
    TooMany(u32),
    System(&'static str, io::Error),
}

impl OwnError {
    fn on(self, name: &str) -> NicError {
        match self {
            OwnError::Changed => NicError::Interrupted {
                subject: Subject::Interface(name).to_string(),
                call: "ETHTOOL_GSTATS",
                attempts: ATTEMPTS_MAX,
            },
            OwnError::TooMany(count) => NicError::TooManyCounters { name: name.to_owned(), count, max: COUNTERS_MAX },
            OwnError::System(call, e) => NicError::system(Subject::Interface(name), call, None, e),
        }
    }
}

impl OwnCounters {
    /// Reads the names; `None` where there are none.
    fn learn(route: &Client, index: u32, driver: &Driver) -> Result<Option<OwnCounters>, OwnError> {
        for _ in 0..ATTEMPTS_MAX {
            let call = "ETHTOOL_GSSET_INFO";
            let count = match ethtool_statistics_count(route.socket(), index) {
                Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(None),
                other => other.map_err(|e| OwnError::System(call, e))?,
            };
            match count {
                0 => return Ok(None),
                _ if count > COUNTERS_MAX => return Err(OwnError::TooMany(count)),
                _ => {}
            }
            let call = "ETHTOOL_GSTRINGS";
            let bytes = STRINGS_HEADER_BYTES + count as usize * NAME_BYTES;
            let mut buffer = GuardedBuffer::new(bytes).map_err(|e| OwnError::System("mmap", e))?;
            match list(route, index, EthtoolList::Strings, count, &mut buffer) {
                Ok(()) => {}
                Err(OwnError::Changed) => continue,
                Err(OwnError::System(_, e)) => return Err(OwnError::System(call, e)),
                Err(e) => return Err(e),
            }
            let names = buffer.bytes()[STRINGS_HEADER_BYTES..bytes].as_chunks::<NAME_BYTES>().0;
            let chosen: Vec<_> = names
                .iter()
                .map(|name| text(name).trim().to_owned())
                .enumerate()
                .filter_map(|(at, name)| driver.use_of(&name).map(|meaning| (at, name, meaning)))
                .collect();
            let bytes = STATISTICS_HEADER_BYTES + count as usize * size_of::<u64>();
            let buffer = GuardedBuffer::new(bytes).map_err(|e| OwnError::System("mmap", e))?;
            return Ok(Some(OwnCounters { count, chosen, buffer }));
        }
        Err(OwnError::Changed)
    }

    fn read(&mut self, route: &Client, index: u32) -> Result<OwnReading, OwnError> {
        list(route, index, EthtoolList::Statistics, self.count, &mut self.buffer)?;
        let values = self.buffer.bytes()[STATISTICS_HEADER_BYTES..].as_chunks::<8>().0;
        let mut reading = OwnReading { missed: None, details: Vec::with_capacity(self.chosen.len()) };
        for (at, name, meaning) in &self.chosen {
            let Some(value) = values.get(*at) else { continue };
            let value = u64::from_ne_bytes(*value);
            if *meaning == Use::Missed {
                reading.missed = Some(reading.missed.unwrap_or(0).wrapping_add(value));
            }
            reading.details.push((name.clone(), value));
        }
        Ok(reading)
    }
}

/// Fills the buffer with a list of exactly `count`.
fn list(route: &Client, index: u32, list: EthtoolList, count: u32, buffer: &mut GuardedBuffer) -> Result<(), OwnError> {
    match ethtool_list(route.socket(), index, list, count, buffer) {
        Ok(written) if written == count => Ok(()),
        // More than there is room for; kernels that check the caller's number write 0 instead.
        Ok(_) => Err(OwnError::Changed),
        Err(e) if e.raw_os_error() == Some(libc::EFAULT) => Err(OwnError::Changed),
        Err(e) => Err(OwnError::System("ETHTOOL_GSTATS", e)),
    }
}

/// `rx-hw-drop-overruns` of the whole interface; `None` where the driver does not have it among its queue statistics.
fn queue_overruns(asked: &mut Asked, index: u32) -> Result<Option<u64>, CallError> {
    let request = asked.netdev_dump(NETDEV_CMD_QSTATS_GET, NETDEV_A_QSTATS_IFINDEX, index);
    let overruns = asked.client.dump("NETDEV_CMD_QSTATS_GET", &request, Partial::Refused, |_, body| {
        for attribute in Attributes::behind::<4>(body)?.1 {
            let attribute = attribute?;
            if attribute.kind == NETDEV_A_QSTATS_RX_HW_DROP_OVERRUNS {
                return attribute.uint().map(Some);
            }
        }
        Ok(None)
    })?;
    Ok(overruns.first().copied())
}
