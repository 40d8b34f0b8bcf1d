//! Replica messages on their way between sites: a packet is a sequence of
//! length-prefixed messages of any shards, little endian, fixed layout.
//!
//! Our own layout instead of the consensus library's: payloads are shared with
//! the packet instead of copied, everything is length-checked, and only kinds
//! that a peer may send are taken. Tested on noise and round trips.

use bytes::Bytes;
use raft::eraftpb::{Entry, EntryType, Message, MessageType};

use super::{lease, members};

/// Fixed part of a message, bytes.
const HEAD: usize = 84;
/// Fixed part of an entry, bytes.
const ENTRY_HEAD: usize = 24;
/// Entries of one message: more than any sender puts into one.
const ENTRIES_MAX: usize = 1 << 16;
/// Bytes of a message's context (read barriers, transfer).
const CONTEXT_MAX: usize = 64;

/// Why a packet was refused. The link it came on is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Ends within a message.
    #[error("a replica message is cut short")]
    Short,
    /// A kind that no peer sends.
    #[error("a replica message of kind {0}")]
    Kind(u8),
    /// A field out of its range.
    #[error("a replica message with an impossible {0}")]
    Field(&'static str),
}

/// Whether a message belongs on the ordered stream of blocks.
pub fn is_bulk(message: &Message) -> bool {
    matches!(message.get_msg_type(), MessageType::MsgAppend | MessageType::MsgSnapshot)
}

/// Appends a message of `shard` to a packet.
pub fn encode(shard: u16, message: &Message, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.push(message.get_msg_type() as u8);
    out.push(u8::from(message.reject));
    out.extend_from_slice(&shard.to_le_bytes());
    for word in [
        message.from,
        message.to,
        message.term,
        message.log_term,
        message.index,
        message.commit,
        message.commit_term,
        message.reject_hint,
        last_word(message),
    ] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(&(message.context.len() as u32).to_le_bytes());
    out.extend_from_slice(&(message.entries.len() as u32).to_le_bytes());
    out.extend_from_slice(&message.context);
    for entry in message.entries.iter() {
        out.extend_from_slice(&entry.index.to_le_bytes());
        out.extend_from_slice(&entry.term.to_le_bytes());
        out.extend_from_slice(&(entry.get_entry_type() as u32).to_le_bytes());
        out.extend_from_slice(&(entry.data.len() as u32).to_le_bytes());
        out.extend_from_slice(&entry.data);
    }
    let bytes = (out.len() - start - 4) as u32;
    out[start..start + 4].copy_from_slice(&bytes.to_le_bytes());
}

/// The leader's mark, there and back; of votes the priority.
fn last_word(message: &Message) -> u64 {
    match lease::is_marked(message.get_msg_type()) {
        true => message.deprecated_priority,
        false => message.priority as u64,
    }
}

/// Bytes that [`encode`] adds for a message.
pub fn encoded_len(message: &Message) -> usize {
    let entries = message.entries.iter().map(|entry| ENTRY_HEAD + entry.data.len());
    4 + HEAD + message.context.len() + entries.sum::<usize>()
}

/// Takes the next message off a packet; its payloads share the packet's memory.
///
/// # Errors
/// [`MessageError`]: the rest of the packet is not to be used.
pub fn decode(packet: &mut Bytes) -> Result<Option<(u16, Message)>, MessageError> {
    if packet.is_empty() {
        return Ok(None);
    }
    let length = take(packet, 4)?;
    let mut rest = take(packet, word32(&length, 0) as usize)?;
    let head = take(&mut rest, HEAD)?;
    let mut message = Message::default();
    message.set_msg_type(kind(head[0])?);
    message.reject = flag(head[1])?;
    let shard = u16::from_le_bytes([head[2], head[3]]);
    let word = |at: usize| word64(&head, 4 + 8 * at);
    message.from = word(0);
    message.to = word(1);
    message.term = word(2);
    message.log_term = word(3);
    message.index = word(4);
    message.commit = word(5);
    message.commit_term = word(6);
    message.reject_hint = word(7);
    if lease::is_marked(message.get_msg_type()) {
        message.deprecated_priority = word(8);
    } else {
        message.priority = word(8) as i64;
    }
    let (context, entries) = (word32(&head, 76) as usize, word32(&head, 80) as usize);
    if context > CONTEXT_MAX {
        return Err(MessageError::Field("context"));
    }
    if entries > ENTRIES_MAX || entries * ENTRY_HEAD > rest.len() {
        return Err(MessageError::Field("number of entries"));
    }
    message.context = take(&mut rest, context)?;
    let mut list = Vec::with_capacity(entries);
    for _ in 0..entries {
        list.push(decode_entry(&mut rest)?);
    }
    check_order(&message, &list)?;
    message.set_entries(list.into());
    if !rest.is_empty() {
        return Err(MessageError::Field("length"));
    }
    Ok(Some((shard, message)))
}

fn decode_entry(rest: &mut Bytes) -> Result<Entry, MessageError> {
    let head = take(rest, ENTRY_HEAD)?;
    let mut entry = Entry::default();
    entry.set_index(word64(&head, 0));
    entry.term = word64(&head, 8);
    entry.set_entry_type(match word32(&head, 16) {
        0 => EntryType::EntryNormal,
        2 => EntryType::EntryConfChangeV2,
        _ => return Err(MessageError::Field("entry type")),
    });
    entry.data = take(rest, word32(&head, 20) as usize)?;
    let changes = entry.get_entry_type() != EntryType::EntryNormal;
    if changes && members::parse(&entry.data).is_none() {
        return Err(MessageError::Field("change of members"));
    }
    Ok(entry)
}

/// Entries follow each other from behind the message's index, as the library
/// takes for granted.
fn check_order(message: &Message, entries: &[Entry]) -> Result<(), MessageError> {
    if !entries.is_empty() && message.get_msg_type() != MessageType::MsgAppend {
        return Err(MessageError::Field("number of entries"));
    }
    let (mut index, mut term) = (message.index, message.log_term);
    for entry in entries {
        let follows = index.checked_add(1) == Some(entry.index);
        if !follows || entry.term < term || entry.term > message.term {
            return Err(MessageError::Field("entry order"));
        }
        (index, term) = (entry.index, entry.term);
    }
    Ok(())
}

/// The kinds that one replica sends to another. Proposals and read barriers are
/// made at the leader only and never travel.
fn kind(number: u8) -> Result<MessageType, MessageError> {
    use MessageType::{
        MsgAppend, MsgAppendResponse, MsgHeartbeat, MsgHeartbeatResponse, MsgRequestPreVote,
        MsgRequestPreVoteResponse, MsgRequestVote, MsgRequestVoteResponse, MsgTimeoutNow,
    };
    [
        MsgAppend,
        MsgAppendResponse,
        MsgRequestVote,
        MsgRequestVoteResponse,
        MsgRequestPreVote,
        MsgRequestPreVoteResponse,
        MsgHeartbeat,
        MsgHeartbeatResponse,
        MsgTimeoutNow,
    ]
    .into_iter()
    .find(|kind| *kind as u8 == number)
    .ok_or(MessageError::Kind(number))
}

fn flag(byte: u8) -> Result<bool, MessageError> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(MessageError::Field("flag")),
    }
}

fn take(bytes: &mut Bytes, count: usize) -> Result<Bytes, MessageError> {
    if bytes.len() < count {
        return Err(MessageError::Short);
    }
    Ok(bytes.split_to(count))
}

fn word32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn word64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

#[cfg(test)]
mod tests {
    use super::super::store::entry;
    use super::*;
    use proptest::prelude::*;

    fn append(entries: Vec<Entry>) -> Message {
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgAppend);
        (message.from, message.to, message.term) = (1, 3, 9);
        (message.log_term, message.index, message.commit) = (7, 41, 40);
        message.set_entries(entries.into());
        message
    }

    #[test]
    fn messages_of_several_shards_share_a_packet() {
        let mut response = Message::default();
        response.set_msg_type(MessageType::MsgHeartbeatResponse);
        (response.from, response.to, response.reject) = (2, 1, true);
        response.deprecated_priority = u64::MAX;
        response.context = Bytes::from_static(&[5; 8]);
        let mut vote = Message::default();
        vote.set_msg_type(MessageType::MsgRequestVote);
        (vote.from, vote.to, vote.term, vote.priority) = (2, 3, 8, -4);
        let first =
            append(vec![entry(42, 7, Bytes::from_static(b"block")), entry(43, 9, Bytes::new())]);
        let mut packet = Vec::new();
        encode(3, &first, &mut packet);
        encode(11, &response, &mut packet);
        encode(2, &vote, &mut packet);
        let lengths = [&first, &response, &vote].map(encoded_len);
        assert_eq!(packet.len(), lengths.iter().sum::<usize>());
        let mut packet = Bytes::from(packet);
        assert_eq!(decode(&mut packet), Ok(Some((3, first))));
        assert_eq!(decode(&mut packet), Ok(Some((11, response))));
        assert_eq!(decode(&mut packet), Ok(Some((2, vote))));
        assert_eq!(decode(&mut packet), Ok(None));
    }

    #[test]
    fn entries_out_of_order_and_foreign_kinds_are_refused() {
        let refused = |message: &Message| {
            let mut packet = Vec::new();
            encode(0, message, &mut packet);
            decode(&mut Bytes::from(packet)).unwrap_err()
        };
        let gap = append(vec![entry(43, 7, Bytes::new())]);
        assert_eq!(refused(&gap), MessageError::Field("entry order"));
        let back = append(vec![entry(42, 6, Bytes::new())]);
        assert_eq!(refused(&back), MessageError::Field("entry order"));
        let ahead = append(vec![entry(42, 10, Bytes::new())]);
        assert_eq!(refused(&ahead), MessageError::Field("entry order"));
        for kind in [MessageType::MsgPropose, MessageType::MsgReadIndex, MessageType::MsgHup] {
            let mut message = append(Vec::new());
            message.set_msg_type(kind);
            assert_eq!(refused(&message), MessageError::Kind(kind as u8));
        }
        let mut vote = append(vec![entry(42, 7, Bytes::new())]);
        vote.set_msg_type(MessageType::MsgRequestVote);
        assert_eq!(refused(&vote), MessageError::Field("number of entries"));
    }

    proptest! {
        #[test]
        fn noise_and_cut_packets_never_panic(
            noise in prop::collection::vec(any::<u8>(), 0..300),
            cut in 0usize..200,
            at in 0usize..200,
            byte in any::<u8>(),
        ) {
            let mut packet = Bytes::from(noise);
            while let Ok(Some(_)) = decode(&mut packet) {}
            let mut good = Vec::new();
            encode(3, &append(vec![entry(42, 7, Bytes::from_static(b"block"))]), &mut good);
            let length = good.len();
            good[at % length] = byte;
            good.truncate(length - cut % length);
            let mut packet = Bytes::from(good);
            while let Ok(Some(_)) = decode(&mut packet) {}
        }
    }
}
