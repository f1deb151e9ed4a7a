//! Sends known UDP packets out of an interface, as fast as it takes them, and prints what they were as one line of JSON.
//!
//! `send INTERFACE PACKETS`. No two packets are alike, and any that is missing, cut or changed shows in one of the sums:
//! flow `f` is `198.18.f/256.f%256:1024+f > 198.19.0.1:9`, packet `i` belongs to flow `i % 1000`, and lengths go through
//! all of 60 to 1514 bytes (without the frame check sequence). Sums: of frames, of IP lengths, and of the latter times the
//! source port, which also shows what was counted for the wrong flow.

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::io;
use std::process::ExitCode;

const FLOWS: u64 = 1000;
const BYTES_MIN: u64 = 60;
const BYTES_MAX: u64 = 1514;
const ETHERNET: usize = 14;
const HEADERS: usize = ETHERNET + 20 + 8;

const AF_PACKET: c_int = 17;
const SOCK_RAW: c_int = 3;
const ENOBUFS: i32 = 105;

/// `struct sockaddr_ll` of packet(7).
#[repr(C)]
struct LinkAddress {
    family: u16,
    protocol: u16,
    index: c_int,
    hardware_type: u16,
    packet_type: u8,
    address_len: u8,
    address: [u8; 8],
}

// The standard library has no packet sockets, but it is linked to the C library, which has.
unsafe extern "C" {
    fn if_nametoindex(name: *const c_char) -> c_uint;
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn sendto(fd: c_int, data: *const c_void, len: usize, flags: c_int, to: *const c_void, to_len: c_uint) -> isize;
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let parsed = match args.as_slice() {
        [interface, packets] => packets.parse::<u64>().ok().map(|packets| (interface, packets)),
        _ => None,
    };
    let Some((interface, packets)) = parsed else {
        eprintln!("usage: send INTERFACE PACKETS");
        return ExitCode::from(2);
    };
    match send_all(interface, packets) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("cannot send out of {interface}: {e}");
            ExitCode::FAILURE
        }
    }
}

fn send_all(interface: &str, packets: u64) -> io::Result<()> {
    let port = Port::open(interface)?;
    let (mut bytes, mut ip_bytes, mut port_bytes) = (0, 0, 0);
    let mut frame = Vec::new();
    for i in 0..packets {
        let source_port = write_frame(i, &mut frame);
        port.send(&frame)?;
        let ip_len = (frame.len() - ETHERNET) as u64;
        bytes += frame.len() as u64;
        ip_bytes += ip_len;
        port_bytes += ip_len * u64::from(source_port);
    }
    let flows = packets.min(FLOWS);
    println!(
        r#"{{"bytes": {bytes}, "flows": {flows}, "packets": {packets}, "ip_bytes": {ip_bytes}, "port_bytes": {port_bytes}}}"#
    );
    Ok(())
}

/// Makes packet `i`. Returns its source port.
fn write_frame(i: u64, frame: &mut Vec<u8>) -> u16 {
    let flow = (i % FLOWS) as u16;
    let source_port = 1024 + flow;
    // 977 has no factor in common with the number of lengths: each of them comes up before any comes twice.
    let len = (BYTES_MIN + i * 977 % (BYTES_MAX - BYTES_MIN + 1)) as usize;
    let (ip_len, udp_len) = ((len - ETHERNET) as u16, (len - ETHERNET - 20) as u16);

    frame.clear();
    // For a station that is not there: received because taphouse listens to everything.
    frame.extend([0x02, 0, 0, 0, 0, 0x02, 0x02, 0, 0, 0, 0, 0x01, 0x08, 0x00]);
    frame.extend([0x45, 0]);
    frame.extend(ip_len.to_be_bytes());
    frame.extend((i as u16).to_be_bytes());
    // Not fragmented, TTL 64, UDP, checksum to come.
    frame.extend([0, 0, 64, 17, 0, 0]);
    frame.extend([198, 18, (flow >> 8) as u8, flow as u8, 198, 19, 0, 1]);
    frame.extend(source_port.to_be_bytes());
    frame.extend(9u16.to_be_bytes());
    frame.extend(udp_len.to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(i.to_be_bytes());
    frame.extend((HEADERS + 8..len).map(|at| at as u8));

    let ip = checksum(0, &frame[14..34]);
    frame[24..26].copy_from_slice(&ip.to_be_bytes());
    // RFC 768: over addresses, protocol and length, too; zero is sent as all ones.
    let udp = match checksum(17 + u32::from(udp_len), &frame[26..]) {
        0 => 0xffff,
        sum => sum,
    };
    frame[40..42].copy_from_slice(&udp.to_be_bytes());
    source_port
}

/// The Internet checksum, RFC 1071.
fn checksum(start: u32, bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0)));
    let mut sum = words.fold(start, u32::wrapping_add);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A packet socket that sends out of one interface.
struct Port {
    fd: c_int,
    to: LinkAddress,
}

impl Port {
    fn open(interface: &str) -> io::Result<Port> {
        let name = CString::new(interface)?;
        // SAFETY: the name is a C string that outlives the call.
        let index = unsafe { if_nametoindex(name.as_ptr()) };
        // SAFETY: takes no memory. Protocol 0 receives nothing.
        let fd = unsafe { socket(AF_PACKET, SOCK_RAW, 0) };
        if index == 0 || fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let to = LinkAddress {
            family: AF_PACKET as u16,
            protocol: 0x0800u16.to_be(),
            index: index as c_int,
            hardware_type: 0,
            packet_type: 0,
            address_len: 6,
            address: [0; 8],
        };
        Ok(Port { fd, to })
    }

    /// Waits for room in the socket's send buffer.
    fn send(&self, frame: &[u8]) -> io::Result<()> {
        loop {
            let to = (&raw const self.to).cast();
            // SAFETY: both point to initialised memory of the lengths given, which outlives the call.
            let sent = unsafe {
                sendto(self.fd, frame.as_ptr().cast(), frame.len(), 0, to, size_of::<LinkAddress>() as c_uint)
            };
            if sent == frame.len() as isize {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            // The queue of the interface is full.
            if error.raw_os_error() != Some(ENOBUFS) {
                return Err(error);
            }
            std::thread::yield_now();
        }
    }
}
