//! System calls on packet sockets (packet(7), linux/if_packet.h). Everything here is sound for any caller.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A packet socket. Bound to no interface, it receives nothing.
pub(super) struct PacketSocket(OwnedFd);

/// Growth of the kernel's counters since they were last read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Statistics {
    /// Packets that passed the filter, dropped ones included.
    pub(super) packets: u32,
    pub(super) drops: u32,
    pub(super) freezes: u32,
}

/// The ends of a filter: how many bytes of the packet are let in.
const RETURN_NOTHING: libc::sock_filter =
    libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: 0 };
const RETURN_WHOLE: libc::sock_filter = libc::sock_filter { k: u32::MAX, ..RETURN_NOTHING };

/// Index of an interface in this network namespace; `None` where there is none of that name.
pub(super) fn interface_index(name: &str) -> Option<i32> {
    let name = CString::new(name).ok()?;
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    i32::try_from(index).ok().filter(|index| *index > 0)
}

impl PacketSocket {
    /// # Errors
    /// EPERM without CAP_NET_RAW.
    pub(super) fn new() -> io::Result<PacketSocket> {
        // SAFETY: no pointers are passed.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        check(fd)?;
        // SAFETY: `fd` was opened just now, is valid as `check` has seen, and nobody else knows it.
        Ok(PacketSocket(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Sets an option of level SOL_PACKET.
    pub(super) fn set<T: Copy>(&self, option: libc::c_int, value: &T) -> io::Result<()> {
        self.set_at(libc::SOL_PACKET, option, value)
    }

    fn set_at<T: Copy>(&self, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
        let bytes = size_of::<T>() as libc::socklen_t;
        // SAFETY: `value` is `bytes` readable bytes for the length of the call, and the kernel reads no more of them.
        let result = unsafe { libc::setsockopt(self.0.as_raw_fd(), level, option, (&raw const *value).cast(), bytes) };
        check(result).map(drop)
    }

    fn get<T: Copy>(&self, level: libc::c_int, option: libc::c_int, into: &mut T) -> io::Result<()> {
        let mut bytes = size_of::<T>() as libc::socklen_t;
        let value = (&raw mut *into).cast();
        // SAFETY: `value` points at `bytes` writable bytes, and the kernel writes no more of them; the callers below use
        // integers and structures of integers, for which any bytes are a value.
        let result = unsafe { libc::getsockopt(self.0.as_raw_fd(), level, option, value, &raw mut bytes) };
        check(result).map(drop)
    }

    /// Reads, and thereby resets, the kernel's counters.
    pub(super) fn statistics(&self) -> io::Result<Statistics> {
        let mut s = libc::tpacket_stats_v3 { tp_packets: 0, tp_drops: 0, tp_freeze_q_cnt: 0 };
        self.get(libc::SOL_PACKET, libc::PACKET_STATISTICS, &mut s)?;
        Ok(Statistics { packets: s.tp_packets, drops: s.tp_drops, freezes: s.tp_freeze_q_cnt })
    }

    /// Takes the pending error off the socket, ENETDOWN after the interface went down.
    pub(super) fn take_error(&self) -> io::Result<Option<io::Error>> {
        let mut code: libc::c_int = 0;
        self.get(libc::SOL_SOCKET, libc::SO_ERROR, &mut code)?;
        Ok((code != 0).then(|| io::Error::from_raw_os_error(code)))
    }

    /// Lets no further packet in. Refused packets are not counted by the kernel.
    pub(super) fn close_gate(&self) -> io::Result<()> {
        self.filter(&mut [RETURN_NOTHING])
    }

    /// Undoes `close_gate`: lets all packets in, or all but those on their way out. A filter does the latter exactly,
    /// in fanout groups too (unlike PACKET_IGNORE_OUTGOING) and before the ring, so that drops are not counted twice.
    pub(super) fn open_gate(&self, outgoing: bool) -> io::Result<()> {
        if outgoing {
            return self.set_at(libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &0_i32);
        }
        let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
        let jump_if_equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
        let packet_type = (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE) as u32;
        self.filter(&mut [
            libc::sock_filter { code: load, jt: 0, jf: 0, k: packet_type },
            libc::sock_filter { code: jump_if_equal, jt: 0, jf: 1, k: u32::from(libc::PACKET_OUTGOING) },
            RETURN_NOTHING,
            RETURN_WHOLE,
        ])
    }

    fn filter(&self, program: &mut [libc::sock_filter]) -> io::Result<()> {
        let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        self.set_at(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
    }

    /// Receives from one interface, all protocols; returns its hardware type (ARPHRD_).
    pub(super) fn bind(&self, interface: i32) -> io::Result<u16> {
        let mut address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
            sll_ifindex: interface,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let mut bytes = size_of_val(&address) as libc::socklen_t;
        let pointer = (&raw mut address).cast();
        // SAFETY: `pointer` is `bytes` readable bytes of a `sockaddr_ll`, the address family's own structure.
        let result = unsafe { libc::bind(self.0.as_raw_fd(), pointer, bytes) };
        check(result)?;
        // SAFETY: `pointer` is `bytes` writable bytes, and the kernel writes no more of them.
        let result = unsafe { libc::getsockname(self.0.as_raw_fd(), pointer, &raw mut bytes) };
        check(result)?;
        Ok(address.sll_hatype)
    }

    /// Joins a fanout group that deals flows to its sockets by a symmetric hash; `None` makes a new one. Returns the
    /// group, which is unique in the network namespace.
    pub(super) fn join_fanout(&self, group: Option<u16>) -> io::Result<u16> {
        let kind = match group {
            Some(_) => libc::PACKET_FANOUT_HASH,
            None => libc::PACKET_FANOUT_HASH | libc::PACKET_FANOUT_FLAG_UNIQUEID,
        };
        self.set(libc::PACKET_FANOUT, &(u32::from(group.unwrap_or(0)) | kind << 16))?;
        let mut joined = 0_u32;
        self.get(libc::SOL_PACKET, libc::PACKET_FANOUT, &mut joined)?;
        Ok(joined as u16)
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result >= 0 { Ok(result) } else { Err(io::Error::last_os_error()) }
}
