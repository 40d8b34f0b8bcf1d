use super::*;
use proptest::prelude::*;

/// Frames, error and pending bytes.
type Cut = (Vec<(Header, Vec<u8>)>, Option<FrameError>, usize);

fn cut(chunks: &[&[u8]]) -> Cut {
    let mut splitter = Splitter::new();
    let mut frames = Vec::new();
    for chunk in chunks {
        let fed = splitter.push(chunk, |header, body| frames.push((header, body.to_vec())));
        if let Err(error) = fed {
            return (frames, Some(error), splitter.pending());
        }
        assert!(splitter.pending() < HEADER_LEN + BODY_MAX);
    }
    (frames, None, splitter.pending())
}

#[test]
fn header_has_the_specified_bytes() {
    let header =
        Header { length: 0x0403, kind: 0x10, flags: 7, correlation: 0x0102_0304_0506_0708 };
    let bytes = header.encode();
    assert_eq!(bytes, [3, 4, 0, 0, 0x10, 7, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1]);
    assert_eq!(Header::decode(&bytes), Ok(header));
}

#[test]
fn oversize_is_refused_as_soon_as_the_header_is_there() {
    let length = BODY_MAX as u32 + 1;
    let header = Header { length, kind: 1, flags: 0, correlation: 9 };
    let (frames, error, _) = cut(&[&header.encode()]);
    assert_eq!((frames.len(), error), (0, Some(FrameError::TooLarge(length))));
    let (first, rest) = (&header.encode()[..5], &header.encode()[5..]);
    assert_eq!(cut(&[first, rest]).1, Some(FrameError::TooLarge(length)));
    let full = Header { length: length - 1, ..header };
    assert_eq!(cut(&[&full.encode()]), (vec![], None, HEADER_LEN));
}

#[test]
fn frames_before_a_broken_header_are_still_taken() {
    let mut bytes = Vec::new();
    let start = begin(&mut bytes, 3, 1);
    bytes.push(42);
    end(&mut bytes, start);
    let mut bad = Header { length: 0, kind: 3, flags: 0, correlation: 2 }.encode();
    bad[6] = 1;
    bytes.extend_from_slice(&bad);
    let (frames, error, _) = cut(&[&bytes]);
    assert_eq!((frames.len(), error), (1, Some(FrameError::Reserved)));
    assert_eq!(frames[0].1, [42]);
}

fn frame() -> impl Strategy<Value = (Header, Vec<u8>)> {
    (any::<u8>(), any::<u64>(), proptest::collection::vec(any::<u8>(), 0..200)).prop_map(
        |(kind, correlation, body)| {
            (Header { length: body.len() as u32, kind, flags: 0, correlation }, body)
        },
    )
}

proptest! {
    #[test]
    fn frames_survive_any_chunking(
        frames in proptest::collection::vec(frame(), 0..12),
        cuts in proptest::collection::vec(0_usize..300, 0..40),
    ) {
        let mut bytes = Vec::new();
        for (header, body) in &frames {
            let start = begin(&mut bytes, header.kind, header.correlation);
            bytes.extend_from_slice(body);
            end(&mut bytes, start);
        }
        let mut chunks = Vec::new();
        let mut rest = &bytes[..];
        for cut in cuts {
            let (chunk, after) = rest.split_at(cut.min(rest.len()));
            chunks.push(chunk);
            rest = after;
        }
        chunks.push(rest);
        prop_assert_eq!(cut(&chunks), (frames, None, 0));
    }

    #[test]
    fn arbitrary_bytes_give_the_same_frames_however_they_are_cut(
        bytes in proptest::collection::vec(prop_oneof![3 => Just(0_u8), 1 => any::<u8>()], 0..400),
        piece in 1_usize..40,
    ) {
        let at_once = cut(&[&bytes]);
        let pieces: Vec<_> = bytes.chunks(piece).collect();
        let in_pieces = cut(&pieces);
        prop_assert_eq!(&at_once.0, &in_pieces.0);
        prop_assert_eq!(at_once.1, in_pieces.1);
        if at_once.1.is_none() {
            prop_assert_eq!(at_once.2, in_pieces.2);
        }
    }
}
