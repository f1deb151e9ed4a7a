/// How far the inspection of one flow has come: one byte in the flow's state, 0 for a flow of which nothing was seen.
///
/// | bits 7-6 | bits 5-3 | bits 2-0 |
/// |---|---|---|
/// | 0 looking | payloads seen from the originator | payloads seen from the responder |
/// | 1 labelled | kind of the label | payloads that may still be looked at |
/// | 2 DNS | unused | hint given, parts kept of either side |
/// | 3 done | 7 | 7 |
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Progress(u8);

/// A label that may still gain texts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Class {
    /// One without texts of its own, of a protocol that may turn into TLS (RFC 3207, RFC 2595): the label stays.
    Plain = 0,
    /// TLS whose ClientHello was not seen.
    Tls = 1,
    /// HTTP whose request was not seen, or that became a tunnel.
    Http = 2,
    /// SSH whose client has not spoken.
    Ssh = 3,
    /// QUIC whose ClientHello is not complete.
    Quic = 4,
    /// A TCP payload in pieces, label not certain.
    Pieces = 5,
    /// The same whose first piece is missing.
    Ahead = 6,
}

/// What is known of a DNS flow.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Dns {
    /// The flow has its hint.
    pub(crate) hinted: bool,
    /// Part of a message from the originator, or from the responder, is kept (TCP).
    pub(crate) partial: [bool; 2],
}

/// [`Progress`], unpacked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    Looking { originator: u8, responder: u8 },
    Labelled { class: Class, left: u8 },
    Dns(Dns),
    Done,
}

impl Progress {
    /// Nothing more is wanted of the flow.
    pub const DONE: Progress = Progress(0xff);

    /// Whether payloads of the flow are still to be given to [`Inspector::inspect`](crate::Inspector::inspect).
    #[inline]
    pub fn wants(self) -> bool {
        self.0 != Progress::DONE.0
    }

    #[inline]
    pub(crate) fn stage(self) -> Stage {
        let (high, low) = (self.0 >> 3 & 7, self.0 & 7);
        match self.0 >> 6 {
            0 => Stage::Looking { originator: high, responder: low },
            1 => {
                let class = match high {
                    1 => Class::Tls,
                    2 => Class::Http,
                    3 => Class::Ssh,
                    4 => Class::Quic,
                    5 => Class::Pieces,
                    6 => Class::Ahead,
                    _ => Class::Plain,
                };
                Stage::Labelled { class, left: low }
            }
            2 => Stage::Dns(Dns { hinted: self.0 & 1 != 0, partial: [self.0 & 2 != 0, self.0 & 4 != 0] }),
            _ => Stage::Done,
        }
    }
}

impl From<Stage> for Progress {
    #[inline]
    fn from(stage: Stage) -> Progress {
        match stage {
            Stage::Looking { originator, responder } => Progress(originator.min(7) << 3 | responder.min(7)),
            Stage::Labelled { left: 0, class: Class::Plain | Class::Tls | Class::Http | Class::Ssh } => Progress::DONE,
            Stage::Labelled { class, left } => Progress(0x40 | (class as u8) << 3 | left.min(7)),
            Stage::Dns(Dns { hinted, partial: [originator, responder] }) => {
                Progress(0x80 | u8::from(hinted) | u8::from(originator) << 1 | u8::from(responder) << 2)
            }
            Stage::Done => Progress::DONE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_survives_its_byte() {
        for byte in 0..=0xff {
            let stage = Progress(byte).stage();
            let packed = Progress::from(stage);
            if packed.wants() {
                assert_eq!(packed.stage(), stage, "{byte:#x}");
            }
        }
        assert_eq!(Progress::default().stage(), Stage::Looking { originator: 0, responder: 0 });
        assert!(Progress::default().wants() && !Progress::DONE.wants());
        assert_eq!(Progress::DONE.stage(), Stage::Done);
    }
}
