use super::*;
use proptest::prelude::*;

/// Frames, error and pending bytes.
type Cut = (Vec<(Header, Vec<u8>)>, Option<FrameError>, usize);

fn frames_of(chunks: &[&[u8]]) -> Cut {
    let mut splitter = Splitter::new();
    let (mut frames, mut error) = (Vec::new(), None);
    for chunk in chunks {
        for frame in splitter.feed(chunk) {
            match frame {
                Ok(frame) => frames.push((frame.header, frame.body.to_vec())),
                Err(e) => error = Some(e),
            }
        }
    }
    (frames, error, splitter.pending())
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
    let (frames, error, _) = frames_of(&[&header.encode()]);
    assert!(frames.is_empty());
    assert_eq!(error, Some(FrameError::TooLarge(header)));
    assert_eq!(error.map(FrameError::code), Some(Code::FrameTooLarge));

    let full = Header { length: length - 1, ..header };
    let (_, error, pending) = frames_of(&[&full.encode()]);
    assert_eq!((error, pending), (None, HEADER_LEN));
}

#[test]
fn a_broken_stream_stays_broken_and_keeps_the_frames_before() {
    let mut bytes = Vec::new();
    let start = begin_frame(&mut bytes, 3, 0, 1);
    bytes.push(42);
    end_frame(&mut bytes, start);
    let mut bad = Header { length: 0, kind: 3, flags: 0, correlation: 2 }.encode();
    bad[6] = 1;
    bytes.extend_from_slice(&bad);
    let good = bytes[..17].to_vec();

    let mut splitter = Splitter::new();
    let got: Vec<_> = splitter.feed(&bytes).collect();
    assert_eq!(got.len(), 2);
    assert_eq!(got[0].map(|f| f.header.correlation), Ok(1));
    assert!(matches!(got[1], Err(FrameError::Reserved(h)) if h.correlation == 2));
    let again: Vec<_> = splitter.feed(&good).collect();
    assert!(matches!(again[..], [Err(FrameError::Reserved(_))]));
}

fn frame() -> impl Strategy<Value = (Header, Vec<u8>)> {
    (any::<u8>(), any::<u8>(), any::<u64>(), proptest::collection::vec(any::<u8>(), 0..200))
        .prop_map(|(kind, flags, correlation, body)| {
            (Header { length: body.len() as u32, kind, flags, correlation }, body)
        })
}

proptest! {
    #[test]
    fn frames_survive_any_chunking(
        frames in proptest::collection::vec(frame(), 0..12),
        cuts in proptest::collection::vec(1_usize..300, 0..40),
    ) {
        let mut bytes = Vec::new();
        for (header, body) in &frames {
            let start = begin_frame(&mut bytes, header.kind, header.flags, header.correlation);
            bytes.extend_from_slice(body);
            end_frame(&mut bytes, start);
        }
        let mut chunks = Vec::new();
        let mut rest = &bytes[..];
        for cut in cuts {
            let (chunk, after) = rest.split_at(cut.min(rest.len()));
            chunks.push(chunk);
            rest = after;
        }
        chunks.push(rest);
        prop_assert_eq!(frames_of(&chunks), (frames, None, 0));
    }

    #[test]
    fn arbitrary_bytes_give_the_same_frames_however_they_are_cut(
        bytes in proptest::collection::vec(prop_oneof![3 => Just(0_u8), 1 => any::<u8>()], 0..400),
        cut in 1_usize..40,
    ) {
        let at_once = frames_of(&[&bytes]);
        let cut: Vec<_> = bytes.chunks(cut).collect();
        let in_pieces = frames_of(&cut);
        prop_assert_eq!(&at_once.0, &in_pieces.0);
        prop_assert_eq!(at_once.1, in_pieces.1);
        if at_once.1.is_none() {
            prop_assert_eq!(at_once.2, in_pieces.2);
        }
    }
}
