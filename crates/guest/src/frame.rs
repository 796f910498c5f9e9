//! Frames on a byte stream.
//!
//! ```text
//! offset  0        4      5     6         8       12       20        28    36          40        44
//!        ┌────────┬──────┬─────┬─────────┬───────┬────────┬─────────┬─────┬───────────┬─────────┬──────┐
//!        │ magic  │layout│kind │ zero    │length │session │sequence │ ack │header crc │body crc │ body │
//!        └────────┴──────┴─────┴─────────┴───────┴────────┴─────────┴─────┴───────────┴─────────┴──────┘
//! ```
//!
//! Integers are little-endian. The header's CRC-32 (IEEE) covers bytes 0 to 36 and, at 40 to 44,
//! the body's checksum, so that a length is believed before the body is there.
//!
//! **Resync rule.** A reader looks for the magic. Whatever fails a check costs one byte: reading
//! goes on behind the first byte of that magic, *inside* a damaged body too, because a body that
//! is damaged is most often a frame cut short by its sender's end, with the next sender's first
//! frame in it. Frames carry their session's random number, so content that looks like a frame is
//! never taken for one of this session.

use crate::error::GuestError;

/// The first bytes of every frame; none is ASCII, so text on the port is never a frame.
pub const MAGIC: [u8; 4] = [0xd0, 0x93, 0xb5, 0xe1];

/// The layout in byte 4.
pub const LAYOUT: u8 = 1;

/// Bytes before the body.
pub const HEADER_LENGTH: usize = 44;

/// The largest body in bytes.
pub const MAX_BODY: usize = 1 << 20;

/// Damaged frames in a row after which the buffer is dropped. A hostile sender can make the reader
/// checksum [`MAX_BODY`] bytes for each header that it places: this bounds the work per byte.
const MAX_DAMAGED_IN_A_ROW: u32 = 64;

/// One frame. What the body means is [`crate::message`]'s.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What the body is; any number, known or not.
    pub kind: u8,
    /// The session's random number.
    pub session: u64,
    /// The place in the sender's order, from 1; 0 for frames outside of it.
    pub sequence: u64,
    /// The highest sequence that the sender has received in order.
    pub ack: u64,
    /// The body.
    pub body: Vec<u8>,
}

impl Frame {
    /// Appends the frame's bytes to `out`.
    ///
    /// # Errors
    /// [`GuestError::BodyLarge`] when the body exceeds [`MAX_BODY`]; nothing was appended.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), GuestError> {
        let too_large = || GuestError::BodyLarge {
            kind: self.kind,
            got: self.body.len(),
        };
        if self.body.len() > MAX_BODY {
            return Err(too_large());
        }
        let length = u32::try_from(self.body.len()).map_err(|_| too_large())?;
        let mut header = Vec::with_capacity(HEADER_LENGTH);
        header.extend_from_slice(&MAGIC);
        header.extend_from_slice(&[LAYOUT, self.kind, 0, 0]);
        header.extend_from_slice(&length.to_le_bytes());
        header.extend_from_slice(&self.session.to_le_bytes());
        header.extend_from_slice(&self.sequence.to_le_bytes());
        header.extend_from_slice(&self.ack.to_le_bytes());
        let body_crc = crc32fast::hash(&self.body).to_le_bytes();
        let header_crc = header_checksum(&header, &body_crc);
        header.extend_from_slice(&header_crc.to_le_bytes());
        header.extend_from_slice(&body_crc);
        out.extend_from_slice(&header);
        out.extend_from_slice(&self.body);
        Ok(())
    }
}

/// The header's checksum: over what stands before it and the body's checksum behind it.
fn header_checksum(before: &[u8], body_crc: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(before);
    hasher.update(body_crc);
    hasher.finalize()
}

/// A header whose checksum is right.
struct Header {
    kind: u8,
    length: usize,
    session: u64,
    sequence: u64,
    ack: u64,
    body_crc: u32,
}

impl Header {
    fn parse(bytes: &[u8; HEADER_LENGTH]) -> Result<Self, GuestError> {
        let (before, rest) = bytes.split_at(36);
        let (header_crc, body_crc) = rest.split_at(4);
        if header_checksum(before, body_crc).to_le_bytes() != *header_crc {
            return Err(GuestError::HeaderDamaged);
        }
        let [_, _, _, _, layout, kind, ..] = *bytes;
        if layout != LAYOUT {
            return Err(GuestError::LayoutUnknown { got: layout });
        }
        let length = usize::try_from(read_u32(bytes, 8)).unwrap_or(usize::MAX);
        if length > MAX_BODY {
            return Err(GuestError::BodyLarge { kind, got: length });
        }
        Ok(Self {
            kind,
            length,
            session: read_u64(bytes, 12),
            sequence: read_u64(bytes, 20),
            ack: read_u64(bytes, 28),
            body_crc: read_u32(bytes, 40),
        })
    }
}

/// The little-endian number at `offset`; offsets are constants inside the header.
fn read_u32(bytes: &[u8; HEADER_LENGTH], offset: usize) -> u32 {
    bytes
        .get(offset..)
        .and_then(|tail| tail.first_chunk())
        .map_or(0, |chunk| u32::from_le_bytes(*chunk))
}

fn read_u64(bytes: &[u8; HEADER_LENGTH], offset: usize) -> u64 {
    bytes
        .get(offset..)
        .and_then(|tail| tail.first_chunk())
        .map_or(0, |chunk| u64::from_le_bytes(*chunk))
}

/// Finds frames in a byte stream. Total: any bytes give frames and typed errors, in bounded memory
/// (one frame and what was pushed last).
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Bytes of `buffer` that are done with.
    start: usize,
    /// Bytes skipped since the last report of garbage.
    skipped: usize,
    damaged_in_a_row: u32,
}

impl Decoder {
    /// A decoder at the start of a stream.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            buffer: Vec::new(),
            start: 0,
            skipped: 0,
            damaged_in_a_row: 0,
        }
    }

    /// Adds bytes from the stream. Call [`Self::next_frame`] until it has none before pushing more.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether part of a frame is buffered. If it stays so for [`crate::STALL_LIMIT`], call
    /// [`Self::abandon`].
    #[must_use]
    pub fn is_partial(&self) -> bool {
        self.start < self.buffer.len()
    }

    /// Gives up the incomplete frame at the front and reads on inside it.
    pub fn abandon(&mut self) -> Option<GuestError> {
        if !self.is_partial() {
            return None;
        }
        self.skip(1);
        Some(GuestError::Stalled)
    }

    /// The next frame or error, `None` when more bytes are needed.
    pub fn next_frame(&mut self) -> Option<Result<Frame, GuestError>> {
        self.seek_magic();
        if self.skipped > 0 {
            let skipped = std::mem::take(&mut self.skipped);
            return Some(Err(GuestError::Garbage { skipped }));
        }
        let rest = self.buffer.get(self.start..)?;
        let header = match Header::parse(rest.first_chunk::<HEADER_LENGTH>()?) {
            Ok(header) => header,
            Err(error) => return Some(Err(self.damaged(error))),
        };
        let body = rest.get(HEADER_LENGTH..HEADER_LENGTH + header.length)?;
        if crc32fast::hash(body) != header.body_crc {
            return Some(Err(self.damaged(GuestError::BodyDamaged { kind: header.kind })));
        }
        let frame = Frame {
            kind: header.kind,
            session: header.session,
            sequence: header.sequence,
            ack: header.ack,
            body: body.to_vec(),
        };
        self.start += HEADER_LENGTH + header.length;
        self.damaged_in_a_row = 0;
        Some(Ok(frame))
    }

    /// Moves to the first place where a magic stands or may begin.
    fn seek_magic(&mut self) {
        let rest = self.buffer.get(self.start..).unwrap_or_default();
        let found = rest.windows(MAGIC.len()).position(|window| window == MAGIC);
        let skip = found.unwrap_or_else(|| {
            // The end may be the beginning of a magic whose rest has not come yet.
            let mut kept = (1..MAGIC.len()).rev();
            rest.len()
                - kept
                    .find(|&n| rest.ends_with(MAGIC.get(..n).unwrap_or(&MAGIC)))
                    .unwrap_or(0)
        });
        self.start += skip;
        self.skipped += skip;
    }

    /// Steps over the first byte of a frame that failed a check; it is not garbage, it was reported.
    fn skip(&mut self, count: usize) {
        self.start = (self.start + count).min(self.buffer.len());
    }

    fn damaged(&mut self, error: GuestError) -> GuestError {
        self.damaged_in_a_row += 1;
        if self.damaged_in_a_row < MAX_DAMAGED_IN_A_ROW {
            self.skip(1);
            return error;
        }
        let hopeless = GuestError::Hopeless {
            dropped: self.buffer.len() - self.start,
            frames: self.damaged_in_a_row,
        };
        self.start = self.buffer.len();
        self.damaged_in_a_row = 0;
        hopeless
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, sequence: u64, body: &[u8]) -> Frame {
        Frame {
            kind,
            session: 0x1122_3344_5566_7788,
            sequence,
            ack: 3,
            body: body.to_vec(),
        }
    }

    fn bytes_of(frame: &Frame) -> Vec<u8> {
        let mut out = Vec::new();
        frame.encode(&mut out).unwrap();
        out
    }

    /// Everything that a decoder says about `bytes`, pushed in pieces of `piece` bytes.
    fn decode(bytes: &[u8], piece: usize) -> (Vec<Frame>, Vec<GuestError>) {
        let (mut decoder, mut frames, mut errors) = (Decoder::new(), Vec::new(), Vec::new());
        for chunk in bytes.chunks(piece) {
            decoder.push(chunk);
            while let Some(item) = decoder.next_frame() {
                match item {
                    Ok(frame) => frames.push(frame),
                    Err(error) => errors.push(error),
                }
            }
        }
        (frames, errors)
    }

    #[test]
    fn garbage_before_and_between_is_skipped_and_counted() {
        let (one, two) = (frame(1, 1, b"one"), frame(2, 2, b""));
        let bytes = [
            b"login: ".to_vec(),
            bytes_of(&one),
            MAGIC[..2].to_vec(),
            bytes_of(&two),
        ]
        .concat();
        for piece in [1, 3, 7, bytes.len()] {
            let (frames, errors) = decode(&bytes, piece);
            assert_eq!(frames, [one.clone(), two.clone()], "pieces of {piece}");
            let skipped: usize = errors
                .iter()
                .map(|e| {
                    if let GuestError::Garbage { skipped } = e {
                        *skipped
                    } else {
                        0
                    }
                })
                .sum();
            assert_eq!(skipped, 9);
        }
    }

    #[test]
    fn a_frame_cut_short_gives_way_to_the_next_senders_first() {
        let (long, hello) = (frame(1, 1, &[7; 4000]), frame(2, 0, b"hello"));
        let mut decoder = Decoder::new();
        decoder.push(&bytes_of(&long)[..500]);
        assert_eq!(decoder.next_frame(), None);
        decoder.push(&bytes_of(&hello));
        assert_eq!(
            decoder.next_frame(),
            None,
            "the rest of the long one may still come"
        );
        assert_eq!(decoder.abandon(), Some(GuestError::Stalled));
        assert!(matches!(
            decoder.next_frame(),
            Some(Err(GuestError::Garbage { .. }))
        ));
        assert_eq!(decoder.next_frame(), Some(Ok(hello)));
        assert!(!decoder.is_partial());
    }

    #[test]
    fn lengths_and_layouts_are_checked_before_the_body_is_awaited() {
        let mut large = bytes_of(&frame(9, 1, b""));
        large[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        let mut foreign = bytes_of(&frame(9, 1, b""));
        foreign[4] = 2;
        for (mut bytes, want) in [
            (
                large,
                GuestError::BodyLarge {
                    kind: 9,
                    got: 0xffff_ffff,
                },
            ),
            (foreign, GuestError::LayoutUnknown { got: 2 }),
        ] {
            let crc = header_checksum(&bytes[..36], &bytes[40..44]);
            bytes[36..40].copy_from_slice(&crc.to_le_bytes());
            let (frames, errors) = decode(&bytes, 1000);
            assert!(frames.is_empty());
            assert_eq!(errors[0], want);
        }
    }

    #[test]
    fn a_hostile_stream_of_headers_costs_bounded_work() {
        // Each header is right and announces a body whose checksum is wrong.
        let mut header = bytes_of(&frame(1, 1, &[0; 1 << 16]));
        header.truncate(HEADER_LENGTH);
        header[40] ^= 1;
        let crc = header_checksum(&header[..36], &header[40..44]);
        header[36..40].copy_from_slice(&crc.to_le_bytes());
        let bytes = header.repeat(4000);
        let (frames, errors) = decode(&bytes, 1 << 17);
        assert!(frames.is_empty());
        assert!(errors.iter().any(|e| matches!(e, GuestError::Hopeless { .. })));
        assert!(errors.len() < 1000, "{} errors", errors.len());
        // And a good frame behind it is read once the stream is sane again.
        let mut decoder = Decoder::new();
        decoder.push(&bytes);
        while decoder.next_frame().is_some() {}
        while decoder.abandon().is_some() {
            while decoder.next_frame().is_some() {}
        }
        let good = frame(3, 4, b"good");
        decoder.push(&bytes_of(&good));
        assert_eq!(decoder.next_frame(), Some(Ok(good)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic_and_in_bounded_memory(
            bytes in prop::collection::vec(any::<u8>(), 0..4096), piece in 1_usize..512,
        ) {
            let (_, errors) = decode(&bytes, piece);
            prop_assert!(errors.len() <= bytes.len() + 1);
        }

        #[test]
        fn frames_survive_any_cutting(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..8), piece in 1_usize..400,
        ) {
            let frames: Vec<Frame> = (1..).zip(&bodies).map(|(n, body)| frame(7, n, body)).collect();
            let bytes: Vec<u8> = frames.iter().flat_map(bytes_of).collect();
            let (got, errors) = decode(&bytes, piece);
            prop_assert_eq!(got, frames);
            prop_assert_eq!(errors, vec![]);
        }

        #[test]
        fn a_flipped_bit_never_yields_another_frame(
            body in prop::collection::vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>(), bit in 0_u8..8,
        ) {
            let good = frame(7, 1, &body);
            let mut bytes = bytes_of(&good);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let (frames, _) = decode(&bytes, 64);
            prop_assert!(frames.is_empty(), "flip at {at} gave {frames:?}");
        }
    }
}
