use crate::App;

/// Longest text of one kind that is kept, in bytes; what is longer is cut at a character.
pub const TEXT_MAX: usize = 255;

/// What the payloads of one flow said. Texts are UTF-8 of at most [`TEXT_MAX`] bytes, empty where nothing was said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hint<'a> {
    /// The protocol.
    pub app: App,
    /// Server name (TLS, QUIC), host (HTTP), first question (DNS), host name (DHCP).
    pub name: &'a str,
    /// First application protocol the client offers (ALPN, RFC 7301).
    pub alpn: &'a str,
    /// User agent (HTTP), software banner of the client (SSH).
    pub agent: &'a str,
    /// JA4 fingerprint of the ClientHello.
    pub ja4: &'a str,
}

/// Lengths of a hint's texts, which lie one after the other in the order of the fields. What a flow record carries of
/// them by value; the bytes travel beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextLens {
    /// Bytes of [`Hint::name`].
    pub name: u8,
    /// Bytes of [`Hint::alpn`].
    pub alpn: u8,
    /// Bytes of [`Hint::agent`].
    pub agent: u8,
    /// Bytes of [`Hint::ja4`].
    pub ja4: u8,
}

impl TextLens {
    /// Bytes of all texts together.
    pub const fn total(self) -> usize {
        self.name as usize + self.alpn as usize + self.agent as usize + self.ja4 as usize
    }
}
