//! Forwarded requests and their answers inside the packets of a peer link: a
//! packet holds any number of either, one after the other. Little endian.
//!
//! Request: u64 ticket, u64 authority (what the asking site knows of the merchant's
//! keys, gateways and addresses, as a hash), u32 wait (ms), u16 gateway, u16 body
//! length, u8 kind, u8 flags (bit 0: a second signature was verified), body as the
//! gateway sent it. A change here is a new version in `peer/hello`.
//!
//! Answer: u64 ticket, u16 body length, u8 kind (the reply's), body as in
//! docs/WIRE.md.
//!
//! The ticket means something only to the site that asks. Tested by round trips
//! and on arbitrary bytes.

use protocol::frame::BODY_MAX;

const SECOND: u8 = 1;

/// A request that the asking site has decoded and authorised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// Echoed in the answer.
    pub ticket: u64,
    /// What it was authorised by (`Directory::authority`).
    pub authority: u64,
    /// How long its gateway still waits, milliseconds; 0: the engine's bound.
    pub wait_ms: u32,
    /// Number of the gateway in the configuration.
    pub gateway: u16,
    /// Message kind.
    pub kind: u8,
    /// A second signature was verified.
    pub second: bool,
    /// Its body.
    pub body: &'a [u8],
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer<'a> {
    /// Of the request.
    pub ticket: u64,
    /// Message kind.
    pub kind: u8,
    /// Its body.
    pub body: &'a [u8],
}

/// The packet breaks off or announces too much; what came before it is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl<'a> Request<'a> {
    /// Appends it to a packet. The body is a frame's, so its length fits.
    pub fn encode(&self, out: &mut Vec<u8>) {
        debug_assert!(self.body.len() <= BODY_MAX);
        out.extend_from_slice(&self.ticket.to_le_bytes());
        out.extend_from_slice(&self.authority.to_le_bytes());
        out.extend_from_slice(&self.wait_ms.to_le_bytes());
        out.extend_from_slice(&self.gateway.to_le_bytes());
        out.extend_from_slice(&(self.body.len() as u16).to_le_bytes());
        out.extend_from_slice(&[self.kind, if self.second { SECOND } else { 0 }]);
        out.extend_from_slice(self.body);
    }

    /// Takes the first one off a packet; `None` at its end.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn take(packet: &mut &'a [u8]) -> Result<Option<Self>, Malformed> {
        if packet.is_empty() {
            return Ok(None);
        }
        let ticket = u64::from_le_bytes(array(packet)?);
        let authority = u64::from_le_bytes(array(packet)?);
        let wait_ms = u32::from_le_bytes(array(packet)?);
        let gateway = u16::from_le_bytes(array(packet)?);
        let length = u16::from_le_bytes(array(packet)?);
        let [kind, flags] = array(packet)?;
        let body = body(packet, length)?;
        if flags & !SECOND != 0 {
            return Err(Malformed);
        }
        let second = flags == SECOND;
        Ok(Some(Self { ticket, authority, wait_ms, gateway, kind, second, body }))
    }
}

impl<'a> Answer<'a> {
    /// Starts an answer at the end of a packet; [`end`] completes it once its
    /// body was appended.
    pub fn begin(ticket: u64, kind: u8, out: &mut Vec<u8>) -> usize {
        out.extend_from_slice(&ticket.to_le_bytes());
        out.extend_from_slice(&[0, 0, kind]);
        out.len()
    }

    /// Writes the length of the answer whose body starts at `start`.
    pub fn end(start: usize, out: &mut [u8]) {
        let length = out.len() - start;
        debug_assert!(length <= BODY_MAX);
        out[start - 3..start - 1].copy_from_slice(&(length as u16).to_le_bytes());
    }

    /// Takes the first one off a packet; `None` at its end.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn take(packet: &mut &'a [u8]) -> Result<Option<Self>, Malformed> {
        if packet.is_empty() {
            return Ok(None);
        }
        let ticket = u64::from_le_bytes(array(packet)?);
        let length = u16::from_le_bytes(array(packet)?);
        let [kind] = array(packet)?;
        Ok(Some(Self { ticket, kind, body: body(packet, length)? }))
    }
}

fn array<const N: usize>(packet: &mut &[u8]) -> Result<[u8; N], Malformed> {
    let (taken, rest) = packet.split_first_chunk::<N>().ok_or(Malformed)?;
    *packet = rest;
    Ok(*taken)
}

fn body<'a>(packet: &mut &'a [u8], length: u16) -> Result<&'a [u8], Malformed> {
    let length = usize::from(length);
    if length > BODY_MAX {
        return Err(Malformed);
    }
    let (body, rest) = packet.split_at_checked(length).ok_or(Malformed)?;
    *packet = rest;
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn requests_come_back_in_order(
            sent in vec(
                (any::<(u64, u64, u32, u16, u8, bool)>(), vec(any::<u8>(), 0..300)), 0..6),
            cut in 1..40_usize,
        ) {
            let mut packet = Vec::new();
            for ((ticket, authority, wait_ms, gateway, kind, second), body) in &sent {
                Request {
                    ticket: *ticket, authority: *authority, wait_ms: *wait_ms, gateway: *gateway, kind: *kind,
                    second: *second, body,
                }.encode(&mut packet);
            }
            let mut rest = packet.as_slice();
            for ((ticket, authority, wait_ms, gateway, kind, second), body) in &sent {
                let got = Request::take(&mut rest).unwrap().unwrap();
                prop_assert_eq!(
                    (got.ticket, got.authority, got.wait_ms, got.gateway, got.kind),
                    (*ticket, *authority, *wait_ms, *gateway, *kind)
                );
                prop_assert_eq!((got.second, got.body), (*second, body.as_slice()));
            }
            prop_assert_eq!(Request::take(&mut rest), Ok(None));
            // Cut short, only whole requests come out, and the rest is refused.
            let kept = packet.len().saturating_sub(cut);
            let mut rest = &packet[..kept];
            let mut whole = 0;
            while let Ok(Some(_)) = Request::take(&mut rest) {
                whole += 1;
            }
            prop_assert!(whole < sent.len().max(1));
        }

        #[test]
        fn answers_come_back_in_order(sent in vec((any::<u64>(), any::<u8>(), vec(any::<u8>(), 0..300)), 0..6)) {
            let mut packet = Vec::new();
            for (ticket, kind, body) in &sent {
                let start = Answer::begin(*ticket, *kind, &mut packet);
                packet.extend_from_slice(body);
                Answer::end(start, &mut packet);
            }
            let mut rest = packet.as_slice();
            for (ticket, kind, body) in &sent {
                let expected = Answer { ticket: *ticket, kind: *kind, body };
                prop_assert_eq!(Answer::take(&mut rest), Ok(Some(expected)));
            }
            prop_assert_eq!(Answer::take(&mut rest), Ok(None));
        }

        #[test]
        fn noise_is_read_to_an_end(noise in vec(any::<u8>(), 0..400)) {
            let mut rest = noise.as_slice();
            while let Ok(Some(request)) = Request::take(&mut rest) {
                prop_assert!(request.body.len() <= BODY_MAX);
            }
            let mut rest = noise.as_slice();
            while let Ok(Some(answer)) = Answer::take(&mut rest) {
                prop_assert!(answer.body.len() <= BODY_MAX);
            }
        }
    }
}
