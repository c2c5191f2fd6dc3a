//! Arbitrary octets as a segment: whatever stands on the disk, a start neither panics nor hands
//! out octets that were not written. Used by a test and by the fuzz target `recovery`.

use std::collections::BTreeMap;

use ringpost::mail::Now;
use ringpost::queue::format::Geometry;
use ringpost::queue::format::SegmentKind;
use ringpost::queue::memory::MemMedium;
use ringpost::queue::{Medium, Opened, Queue, SegmentId};

use super::rig::{MIB, Rig, body, checksum, message, options};

/// A small spool with two messages: what the octets are laid over.
fn image() -> MemMedium {
    let medium = MemMedium::default();
    let mut rig = Rig::open(medium.clone(), 3 * MIB, Now::default()).unwrap();
    for mid in 1..3 {
        let to = ["a@one.example".to_owned(), "b@two.example".to_owned()];
        let new = message(mid, &to, 500, None);
        assert!(rig.queue.append(new).is_ok());
        rig.run();
    }
    medium
}

/// Recovers from `data`: its first octet says how the rest is laid over a segment.
pub(crate) fn recover(data: &[u8]) {
    let [mode, rest @ ..] = data else { return };
    let medium = image();
    let file = medium.file(SegmentId(1)).unwrap();
    let geometry = Geometry::of(SegmentKind::Messages, MIB);
    match mode % 4 {
        // The whole file from its start; its names; its table.
        0 => write(&medium, 0, rest),
        1 => write(&medium, 8192, rest),
        2 => write(&medium, geometry.table_offset, rest),
        // Single octets changed, at places that matter.
        _ => {
            let (patches, _) = rest.as_chunks::<4>();
            for [high, middle, low, octet] in patches {
                let at = u64::from(*high % 2) << 16 | u64::from(*middle) << 8 | u64::from(*low);
                let at = if high & 4 == 0 { geometry.table_offset + at % 1024 } else { at };
                file.change(at, |before| before ^ octet);
            }
        }
    }
    let first = look(&medium);
    let second = look(&medium);
    assert_eq!(first, second, "doing it twice changes nothing");
}

fn write(medium: &MemMedium, offset: u64, octets: &[u8]) {
    let file = medium.file(SegmentId(1)).unwrap();
    let room = usize::try_from(MIB - offset).unwrap();
    medium.write_at(&file, offset, &octets[..octets.len().min(room)]).unwrap();
}

/// Opens the spool and reads all of it; every message handed out is one that was written.
fn look(medium: &MemMedium) -> BTreeMap<(u64, u32), String> {
    let options = options(3 * MIB, medium);
    let Ok(Opened { mut queue, files, .. }) = Queue::open(medium, options, Now::default()) else {
        return BTreeMap::new();
    };
    queue.end_flights();
    let mut handles = Vec::new();
    let mut cursor = Some(0);
    while let Some(at) = cursor {
        cursor = queue.walk(at, 100, &mut handles);
    }
    let mut out = BTreeMap::new();
    for handle in handles {
        let _summary = queue.summary(handle);
        let Some(plan) = queue.read_plan(handle) else { continue };
        let mut octets = Vec::new();
        for piece in &plan.pieces {
            let file = files.iter().find(|(id, _)| *id == piece.segment);
            let mut part = vec![0; usize::try_from(piece.octets.min(2 * MIB)).unwrap()];
            let read = file.map(|(_, file)| medium.read_at(file, piece.offset, &mut part));
            if read.is_some_and(|read| read.is_ok()) {
                octets.extend(part);
            }
        }
        let Ok(stored) = queue.parse(handle, &plan, octets) else { continue };
        let sum = checksum(&stored.octets[stored.body.clone()]);
        assert_eq!(sum, checksum(&body(stored.mid.0, 500)), "foreign octets were handed out");
        for recipient in stored.envelope.recipients {
            out.insert((stored.mid.0, recipient.rid.0), recipient.address.to_string());
        }
    }
    queue.tick(Now::default().plus_ms(5_000));
    while let Some(_effect) = queue.next_effect() {}
    out
}
