//! What the stub's guest answers on its network: pings, and by echo every TCP connection and datagram, on
//! every port, of IPv4 and IPv6, without keeping anything of a connection. Pure.

/// Ethernet header.
const ETHERNET: usize = 14;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const PSH: u8 = 8;
const ACK: u8 = 16;

/// The sequence number that every connection begins with.
const FIRST: u32 = 0x0d0a_0000;

/// The answer to an Ethernet frame, if there is one.
pub(crate) fn answer(frame: &[u8]) -> Option<Vec<u8>> {
    let (header, packet) = frame.split_at_checked(ETHERNET)?;
    let kind = u16::from_be_bytes([*header.get(12)?, *header.get(13)?]);
    let packet = match kind {
        IPV4 => ipv4(packet)?,
        IPV6 => ipv6(packet)?,
        _ => return None,
    };
    let mut out = Vec::with_capacity(ETHERNET + packet.len());
    out.extend_from_slice(header.get(6..12)?);
    out.extend_from_slice(header.get(..6)?);
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&packet);
    Some(out)
}

fn ipv4(packet: &[u8]) -> Option<Vec<u8>> {
    let header = usize::from(packet.first()? & 15) * 4;
    let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
    // A fragment has no header that could be answered.
    let fragment = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x3fff;
    if header < 20 || fragment != 0 {
        return None;
    }
    let body = packet.get(header..total)?;
    let (from, to) = (packet.get(16..20)?, packet.get(12..16)?);
    let protocol = *packet.get(9)?;
    let payload = transport(protocol, from, to, body)?;
    let mut out = vec![0x45, 0];
    out.extend_from_slice(&u16::try_from(20 + payload.len()).ok()?.to_be_bytes());
    out.extend_from_slice(&[0, 0, 0x40, 0, 64, protocol, 0, 0]);
    out.extend_from_slice(from);
    out.extend_from_slice(to);
    let checksum = fold(sum(0, &out));
    put(&mut out, 10, checksum);
    out.extend_from_slice(&payload);
    Some(out)
}

fn ipv6(packet: &[u8]) -> Option<Vec<u8>> {
    let length = usize::from(u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?]));
    let protocol = *packet.get(6)?;
    let body = packet.get(40..40 + length)?;
    let (from, to) = (packet.get(24..40)?, packet.get(8..24)?);
    let payload = transport(protocol, from, to, body)?;
    let mut out = vec![0x60, 0, 0, 0];
    out.extend_from_slice(&u16::try_from(payload.len()).ok()?.to_be_bytes());
    out.extend_from_slice(&[protocol, 64]);
    out.extend_from_slice(from);
    out.extend_from_slice(to);
    out.extend_from_slice(&payload);
    Some(out)
}

/// The answer's transport part, sent `from` (us) `to` (them).
fn transport(protocol: u8, from: &[u8], to: &[u8], body: &[u8]) -> Option<Vec<u8>> {
    let (mut out, checksum) = match (protocol, *body.first()?) {
        (ICMP, 8) => (echo(0, body), 2),
        (ICMPV6, 128) => (echo(129, body), 2),
        (TCP, _) => (tcp(body)?, 16),
        (UDP, _) => (udp(body)?, 6),
        _ => return None,
    };
    put(&mut out, checksum, 0);
    let pseudo = if protocol == ICMP {
        0
    } else {
        let length = u32::try_from(out.len()).ok()?;
        sum(sum(sum(u32::from(protocol), from), to), &length.to_be_bytes())
    };
    let value = match fold(sum(pseudo, &out)) {
        // A datagram without a checksum is written as zero.
        0 if protocol == UDP => 0xffff,
        value => value,
    };
    put(&mut out, checksum, value);
    Some(out)
}

fn echo(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = body.to_vec();
    if let Some(first) = out.first_mut() {
        *first = kind;
    }
    out
}

fn udp(body: &[u8]) -> Option<Vec<u8>> {
    let length = usize::from(u16::from_be_bytes([*body.get(4)?, *body.get(5)?]));
    let mut out = body.get(2..4)?.to_vec();
    out.extend_from_slice(body.get(..2)?);
    out.extend_from_slice(body.get(4..6)?);
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(body.get(8..length)?);
    Some(out)
}

/// Everything that an answer says follows from the segment that it answers.
fn tcp(body: &[u8]) -> Option<Vec<u8>> {
    let number = |at: usize| Some(u32::from_be_bytes(body.get(at..at + 4)?.try_into().ok()?));
    let (sequence, acknowledged) = (number(4)?, number(8)?);
    let header = usize::from(body.get(12)? >> 4) * 4;
    let flags = *body.get(13)?;
    let data = body.get(header..)?;
    let advanced = sequence.wrapping_add(u32::try_from(data.len()).ok()?);
    let (ours, theirs, flags, data) = match (flags & (SYN | FIN | RST), data) {
        (SYN, _) => (FIRST, sequence.wrapping_add(1), SYN | ACK, &[][..]),
        (FIN, data) => (acknowledged, advanced.wrapping_add(1), FIN | PSH | ACK, data),
        (0, data @ [_, ..]) => (acknowledged, advanced, PSH | ACK, data),
        _ => return None,
    };
    let mut out = body.get(2..4)?.to_vec();
    out.extend_from_slice(body.get(..2)?);
    out.extend_from_slice(&ours.to_be_bytes());
    out.extend_from_slice(&theirs.to_be_bytes());
    // A window of 64 KiB, no options.
    out.extend_from_slice(&[0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    out.extend_from_slice(data);
    Some(out)
}

/// Adds 16-bit words, the last one padded (RFC 1071).
fn sum(start: u32, bytes: &[u8]) -> u32 {
    bytes.chunks(2).fold(start, |sum, pair| {
        let word = u16::from_be_bytes([
            pair.first().copied().unwrap_or(0),
            pair.get(1).copied().unwrap_or(0),
        ]);
        sum.wrapping_add(u32::from(word))
    })
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

fn put(out: &mut [u8], at: usize, value: u16) {
    if let Some(place) = out.get_mut(at..at + 2) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME_V4: &[u8] = &[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];

    fn packet_v4(protocol: u8, body: &[u8]) -> Vec<u8> {
        let mut frame = FRAME_V4.to_vec();
        frame.extend_from_slice(&[
            0x45,
            0,
            0,
            u8::try_from(20 + body.len()).unwrap(),
            0,
            0,
            0,
            0,
            64,
            protocol,
            0,
            0,
        ]);
        frame.extend_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend_from_slice(body);
        frame
    }

    #[test]
    fn a_ping_is_answered_with_right_checksums() {
        let got = answer(&packet_v4(ICMP, &[8, 0, 0, 0, 1, 2, 3, 4, b'x'])).unwrap();
        assert_eq!(got[..12], [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
        assert_eq!(fold(sum(0, &got[14..34])), 0, "the sum over a right header is 0");
        assert_eq!(got[26..34], [10, 0, 0, 2, 10, 0, 0, 1]);
        assert_eq!(got[34], 0);
        assert_eq!(fold(sum(0, &got[34..])), 0);
        assert_eq!(got[38..], [1, 2, 3, 4, b'x']);
    }

    #[test]
    fn a_connection_opens_echoes_and_closes() {
        let segment = |flags, data: &[u8]| {
            let mut body = vec![
                0x10, 0, 0x1b, 0x58, 0, 0, 0, 100, 0, 0, 0, 7, 0x50, flags, 1, 0, 0, 0, 0, 0,
            ];
            body.extend_from_slice(data);
            packet_v4(TCP, &body)
        };
        let parts = |frame: Vec<u8>| {
            let tcp = &frame[34..];
            let number = |at: usize| u32::from_be_bytes(tcp[at..at + 4].try_into().unwrap());
            (number(4), number(8), tcp[13], tcp[20..].to_vec())
        };
        assert_eq!(
            parts(answer(&segment(SYN, b"")).unwrap()),
            (FIRST, 101, SYN | ACK, vec![])
        );
        assert_eq!(
            parts(answer(&segment(PSH | ACK, b"abc")).unwrap()),
            (7, 103, PSH | ACK, b"abc".to_vec())
        );
        assert_eq!(
            parts(answer(&segment(FIN | ACK, b"")).unwrap()),
            (7, 101, FIN | PSH | ACK, vec![])
        );
        assert_eq!(answer(&segment(ACK, b"")), None);
        assert_eq!(answer(&segment(RST, b"")), None);
    }

    #[test]
    fn any_bytes_are_survived() {
        let whole = packet_v4(UDP, &[0, 1, 0, 2, 0, 9, 0, 0, 7]);
        for end in 0..whole.len() {
            assert_eq!(answer(&whole[..end]), None);
        }
        assert_eq!(answer(&whole).unwrap().last(), Some(&7));
        for seed in 0..2000_u32 {
            let mut noise = seed;
            let bytes: Vec<u8> = (0..seed % 90)
                .map(|_| {
                    noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    u8::try_from(noise >> 24).unwrap()
                })
                .collect();
            for kind in [IPV4, IPV6] {
                let mut frame = FRAME_V4.to_vec();
                frame[12..].copy_from_slice(&kind.to_be_bytes());
                frame.extend_from_slice(&bytes);
                let _ = answer(&frame);
            }
        }
    }
}
