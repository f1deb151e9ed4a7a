//! Finds a function of the kernel in its type information (Documentation/bpf/btf.rst).

use std::io::Read;

/// Where the kernel publishes its own types.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
/// Largest type information that is read; kernels have 4-8 MiB.
const BYTES_MAX: u64 = 64 << 20;

const MAGIC: u16 = 0xeb9f;
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 24;
const TYPE_BYTES: usize = 12;
const KIND_FUNC: u32 = 12;

/// Why a kernel function was not found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BtfError {
    /// The kernel publishes no types (CONFIG_DEBUG_INFO_BTF), or hides them.
    #[error("cannot read {VMLINUX}: {0}")]
    Read(#[source] std::io::Error),
    /// Not what the format allows.
    #[error("{VMLINUX} is no type information this program can read: byte {at} {what}")]
    Format {
        /// Offset in the file.
        at: usize,
        /// What is wrong there.
        what: &'static str,
    },
    /// This kernel does not have it.
    #[error("the kernel has no function '{name}': it takes Linux 6.3 or newer")]
    Missing {
        /// Its name.
        name: &'static str,
    },
}

/// Id of a function in the running kernel's types, for calling it.
///
/// # Errors
/// See [`BtfError`].
pub(super) fn kernel_function(name: &'static str) -> Result<i32, BtfError> {
    let mut blob = Vec::new();
    let file = std::fs::File::open(VMLINUX).map_err(BtfError::Read)?;
    file.take(BYTES_MAX).read_to_end(&mut blob).map_err(BtfError::Read)?;
    function_id(&blob, name.as_bytes())?.ok_or(BtfError::Missing { name })
}

/// Id of the function called `name`; the first type has id 1. One pass over the types.
fn function_id(blob: &[u8], name: &[u8]) -> Result<Option<i32>, BtfError> {
    let format = |at, what| BtfError::Format { at, what };
    if blob.get(..2) != Some(&MAGIC.to_ne_bytes()) {
        return Err(format(0, "is not the magic number eb9f in this machine's byte order"));
    }
    if blob.get(2) != Some(&VERSION) {
        return Err(format(2, "is not version 1"));
    }
    let field = |at| u32_at(blob, at).ok_or(format(at, "is behind the end, in the header"));
    let header = field(4)? as usize;
    if header < HEADER_BYTES {
        return Err(format(4, "tells a header of less than 24 bytes"));
    }
    let section = |at: usize| {
        let (start, bytes) = (field(at)? as usize, field(at + 4)? as usize);
        header
            .checked_add(start)
            .and_then(|start| Some((start, blob.get(start..start.checked_add(bytes)?)?)))
            .ok_or(format(at, "tells a section that is not within the file"))
    };
    let (types_at, types) = section(8)?;
    let (_, strings) = section(16)?;

    let mut at = 0;
    for id in 1.. {
        let Some(info) = u32_at(types, at + 4) else {
            break;
        };
        let (kind, length) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        let extra = extra_bytes(kind, length).ok_or(format(types_at + at + 4, "tells an unknown kind of type"))?;
        if kind == KIND_FUNC && u32_at(types, at).is_some_and(|offset| string_is(strings, offset, name)) {
            return Ok(Some(id));
        }
        at += TYPE_BYTES + extra;
    }
    Ok(None)
}

/// Bytes behind the `struct btf_type` of a type of this kind with `length` members; `None` for a kind not known.
fn extra_bytes(kind: u32, length: usize) -> Option<usize> {
    Some(match kind {
        // Pointer, forward, typedef, volatile, const, restrict, function, float, type tag.
        2 | 7..=12 | 16 | 18 => 0,
        // Integer, variable, declaration tag.
        1 | 14 | 17 => 4,
        // Array.
        3 => 12,
        // Structure, union, section, 64-bit enumeration.
        4 | 5 | 15 | 19 => 12 * length,
        // Enumeration, function prototype.
        6 | 13 => 8 * length,
        _ => return None,
    })
}

/// Whether the NUL-terminated string at `offset` is `name`.
fn string_is(strings: &[u8], offset: u32, name: &[u8]) -> bool {
    let rest = strings.get(offset as usize..).and_then(|rest| rest.strip_prefix(name));
    rest.is_some_and(|rest| rest.first() == Some(&0))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    /// A header, then types, then strings.
    fn blob(types: &[u32], strings: &[u8]) -> Vec<u8> {
        let types = words(types);
        let mut blob = MAGIC.to_ne_bytes().to_vec();
        blob.extend([VERSION, 0]);
        blob.extend(words(&[24, 0, types.len() as u32, types.len() as u32, strings.len() as u32]));
        blob.extend(types);
        blob.extend(strings);
        blob
    }

    const STRINGS: &[u8] = b"\0int\0rx_hash\0rx_timestamp\0rx_timestamp_not\0";

    fn sample() -> Vec<u8> {
        blob(
            &[
                1,
                1 << 24,
                4,
                0x0100_0020, // 1: int
                0,
                13 << 24 | 2,
                1,
                0,
                1,
                0,
                1, // 2: int (int, int)
                26,
                12 << 24,
                2, // 3: rx_timestamp_not
                5,
                12 << 24 | 1,
                2, // 4: rx_hash
                0,
                4 << 24 | 1,
                4,
                1,
                1,
                0, // 5: a structure of one member
                13,
                1 << 24,
                4,
                0x0100_0020, // 6: rx_timestamp, but an integer
                0,
                1 << 31 | 19 << 24 | 1,
                8,
                1,
                2,
                3, // 7: a 64-bit enumeration
                13,
                12 << 24 | 1,
                2, // 8: rx_timestamp
            ],
            STRINGS,
        )
    }

    #[test]
    fn functions_are_found_by_name() {
        for (name, id) in [("rx_timestamp", Some(8)), ("rx_hash", Some(4)), ("rx", None), ("int", None), ("", None)] {
            assert_eq!(function_id(&sample(), name.as_bytes()).unwrap(), id, "{name}");
        }
    }

    #[test]
    fn damage_is_an_error_or_not_found() {
        let whole = sample();
        for bytes in 0..whole.len() {
            // The strings end the file, so that each cut leaves a section outside.
            assert!(function_id(&whole[..bytes], b"rx_timestamp").is_err(), "{bytes}");
        }
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut damaged = whole.clone();
                damaged[at] ^= 1 << bit;
                let _ = function_id(&damaged, b"rx_timestamp");
            }
        }
        let error = function_id(&blob(&[0, 31 << 24, 0], STRINGS), b"rx_hash").unwrap_err();
        assert!(error.to_string().ends_with("byte 28 tells an unknown kind of type"), "{error}");
        let error = function_id(b"\x7fELF", b"rx_hash").unwrap_err();
        assert!(error.to_string().contains("byte 0 is not the magic number"), "{error}");
    }

    #[test]
    fn of_this_kernel() {
        match kernel_function("bpf_xdp_metadata_rx_timestamp") {
            Ok(id) => assert!(id > 0),
            Err(e) => {
                assert!(std::env::var_os("REQUIRE_XDP").is_none_or(|v| v != "1"), "REQUIRE_XDP=1, but: {e}");
                println!("SKIPPED: {e}");
            }
        }
        assert!(matches!(kernel_function("taphouse_has_none"), Err(BtfError::Missing { .. } | BtfError::Read(_))));
    }
}
