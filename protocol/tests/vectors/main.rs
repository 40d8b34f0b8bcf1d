//! Golden vectors: frames in hex with a readable twin, one for every message
//! kind and every code, under `protocol/vectors/`. Other languages check their
//! encoders against the same files.
//!
//! Here both directions are held: decode(hex) is the twin, encode(twin) is the
//! hex, and the signature is the key's over the canonical form. After a change
//! of the wire: `UPDATE_VECTORS=1 cargo test -p protocol --test vectors`, and
//! read the difference before it is committed.

mod samples;
mod twin;

use protocol::code::Code;
use protocol::sign::{MerchantKey, SigningKey};
use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::OnceLock;
use twin::{Twin, derived, hex, read, unhex, write};

const FILES: [&str; 5] = ["requests", "replies", "control", "refusals", "channel"];

fn path(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors").join(format!("{file}.txt"))
}

/// What stands in a file for one sample: its twin, what belongs to a signed
/// request, and the frame.
fn lines(sample: &samples::Sample) -> Twin {
    let (mut twin, canonical) = read(&sample.frame);
    twin.0.insert(0, ("vector".to_owned(), sample.name.clone()));
    if let Some(canonical) = canonical {
        twin.put("canonical", canonical);
    }
    for (name, value) in &sample.keys {
        twin.put(name, value);
    }
    if twin.text("kind") == "0x10" {
        derived(&mut twin, &sample.frame);
    }
    twin.put("frame", hex(&sample.frame));
    twin
}

fn render(file: &str) -> String {
    let mut text = String::from(
        "# Golden vectors of payswitch/1. Generated and checked by the test `vectors` of the\n\
         # crate `protocol`; the format is described in docs/WIRE.md.\n",
    );
    for sample in samples::samples(file) {
        text.push('\n');
        for (name, value) in lines(&sample).0 {
            writeln!(text, "{name}:{}{value}", if value.is_empty() { "" } else { " " }).unwrap();
        }
    }
    text
}

fn parse(text: &str) -> Vec<Twin> {
    let mut vectors = vec![Twin::default()];
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        match line.split_once(": ").or_else(|| Some((line.strip_suffix(':')?, ""))) {
            Some((name, value)) => vectors.last_mut().unwrap().put(name, value),
            None => vectors.push(Twin::default()),
        }
    }
    vectors.retain(|twin| !twin.0.is_empty());
    vectors
}

/// The files' vectors; rewritten first, once, when that is asked for.
fn files() -> &'static [(&'static str, Vec<Twin>)] {
    static VECTORS: OnceLock<Vec<(&'static str, Vec<Twin>)>> = OnceLock::new();
    VECTORS.get_or_init(|| {
        let update = std::env::var_os("UPDATE_VECTORS").is_some();
        let read = |file: &'static &'static str| {
            if update {
                std::fs::write(path(file), render(file)).unwrap();
            }
            (*file, parse(&std::fs::read_to_string(path(file)).unwrap()))
        };
        FILES.iter().map(read).collect()
    })
}

#[test]
fn frames_and_twins_are_each_other() {
    for (file, vectors) in files() {
        for vector in vectors {
            let name = format!("{file}: {}", vector.text("vector"));
            let frame = unhex(vector.text("frame"));
            assert_eq!(hex(&write(vector)), vector.text("frame"), "encode(twin), {name}");
            let (twin, canonical) = read(&frame);
            assert_eq!(vector.0[1..=twin.0.len()], twin.0[..], "decode(frame), {name}");
            assert_eq!(vector.has("canonical"), canonical.is_some(), "{name}");
            if let Some(canonical) = canonical {
                assert_eq!(vector.text("canonical"), canonical, "{name}");
                check_signatures(vector, &canonical, &name);
            }
            if vector.text("kind") == "0x10" {
                let mut again = Twin::default();
                derived(&mut again, &frame);
                for (line, value) in &again.0 {
                    assert_eq!(vector.text(line), value, "{line}, {name}");
                }
            }
        }
    }
}

fn check_signatures(vector: &Twin, canonical: &str, name: &str) {
    for (prefix, kind) in [("", "key"), ("second.", "second.key")] {
        if !vector.has(kind) {
            continue;
        }
        let signature = unhex(vector.text(&format!("{prefix}signature")));
        let (algorithm, secret) = vector.text(kind).split_once(' ').unwrap();
        let secret = unhex(secret);
        let (signing, verifying) = match algorithm {
            "hmac-sha256" => (SigningKey::hmac(&secret), MerchantKey::hmac(&secret)),
            "ed25519-seed" => {
                let public = unhex(vector.text(&format!("{prefix}public_key")));
                let seed = secret.try_into().unwrap();
                (SigningKey::ed25519(&seed), MerchantKey::ed25519(&public).unwrap())
            }
            other => panic!("{other}"),
        };
        let mut made = [0; 64];
        let len = signing.sign(canonical.as_bytes(), &mut made);
        assert_eq!(hex(&made[..len]), hex(&signature), "{name}");
        assert!(verifying.verify(canonical.as_bytes(), &signature), "{name}");
        let other = canonical.replace("op=", "op=x");
        assert!(!verifying.verify(other.as_bytes(), &signature), "{name}");
    }
}

#[test]
fn every_kind_and_every_code_has_a_vector() {
    let files = files();
    let all = || files.iter().flat_map(|(_, vectors)| vectors);
    let kinds: HashSet<&str> = all().map(|vector| vector.text("kind")).collect();
    let mut expected: Vec<u8> = vec![0x01, 0x02, 0x03, 0x04, 0x20, 0x21, 0x22, 0x83, 0xa0, 0xff];
    expected.extend(0x10..=0x15);
    expected.extend(0x90..=0x95);
    expected.extend(0x40..=0x44);
    expected.extend(0xc0..=0xc4);
    let expected: HashSet<String> = expected.iter().map(|kind| format!("{kind:#04x}")).collect();
    assert_eq!(kinds, expected.iter().map(String::as_str).collect());
    for kind in ["0xff", "0x90"] {
        let codes: HashSet<&str> =
            all().filter(|v| v.text("kind") == kind).map(|v| v.text("code")).collect();
        let missing: Vec<_> =
            Code::ALL.iter().skip(1).filter(|code| !codes.contains(code.name())).collect();
        assert!(missing.is_empty(), "{kind}: {missing:?}");
    }
}

#[test]
fn files_are_what_the_samples_give() {
    for (file, _) in files() {
        let same = std::fs::read_to_string(path(file)).unwrap() == render(file);
        assert!(same, "vectors/{file}.txt differs from its samples: see the head of this file");
    }
}
