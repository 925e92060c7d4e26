//! The bytes of a part as they are sent and kept: plain, or compressed where that helps.

use crate::item::Part;
use crate::message::Encoding;
use bytes::Bytes;
use std::io::Read;

/// zstd's level.
const LEVEL: i32 = 3;
/// How much of a part is tried first.
const SAMPLE: usize = 16 << 10;
/// Smaller ones are not worth it.
const LEAST: usize = 1 << 10;

fn compressed(bytes: &[u8]) -> Option<Vec<u8>> {
    let packed = zstd::stream::encode_all(bytes, LEVEL).ok()?;
    // A tenth at least, or it is not worth the work at the other end.
    (packed.len() < bytes.len() - bytes.len() / 10).then_some(packed)
}

/// The bytes to be sent for a part: compressed, if its beginning shows that this helps.
#[must_use]
pub fn pack(plain: &Bytes) -> (Encoding, Bytes) {
    let tries = plain.len() >= LEAST && (plain.len() <= SAMPLE || compressed(&plain[..SAMPLE]).is_some());
    match tries.then(|| compressed(plain)).flatten() {
        Some(packed) => (Encoding::ZSTD, packed.into()),
        None => (Encoding::PLAIN, plain.clone()),
    }
}

/// The bytes of a part. `None`: they are of another size, or make no sense; no more memory is taken than the part has.
#[must_use]
pub fn unpack(encoding: Encoding, packed: Bytes, size: u32) -> Option<Bytes> {
    let plain = match encoding {
        Encoding::PLAIN => packed,
        Encoding::ZSTD => {
            let decoder = zstd::stream::read::Decoder::new(&*packed).ok()?;
            let mut plain = Vec::with_capacity(size as usize);
            decoder.take(u64::from(size) + 1).read_to_end(&mut plain).ok()?;
            plain.into()
        }
        _ => return None,
    };
    (plain.len() == size as usize).then_some(plain)
}

/// The same, if they are what the part says.
#[must_use]
pub fn unpack_part(encoding: Encoding, packed: Bytes, part: &Part) -> Option<Bytes> {
    unpack(encoding, packed, part.size).filter(|plain| crate::item::Digest::of(plain) == part.digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::item::Digest;

    #[test]
    fn what_is_packed_comes_out_the_same() {
        let text: Bytes = "The same words again and again. ".repeat(2000).into();
        let noise: Bytes = (0..100_000_u32)
            .flat_map(|n| blake3::hash(&n.to_le_bytes()).as_bytes()[..1].to_vec())
            .collect::<Vec<_>>()
            .into();
        let tiny = Bytes::from_static(b"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa");
        for (plain, encoding) in [(text, Encoding::ZSTD), (noise, Encoding::PLAIN), (tiny, Encoding::PLAIN)] {
            let (as_sent, packed) = pack(&plain);
            assert_eq!(as_sent, encoding);
            let size = u32::try_from(plain.len()).expect("small");
            assert_eq!(unpack(as_sent, packed.clone(), size), Some(plain.clone()));
            let part = Part { digest: Digest::of(&plain), size };
            assert_eq!(unpack_part(as_sent, packed.clone(), &part), Some(plain));
            let other = Part { digest: Digest([0; 32]), size };
            assert_eq!(unpack_part(as_sent, packed.clone(), &other), None);
            assert_eq!(unpack(as_sent, packed.clone(), size - 1), None);
            assert_eq!(unpack(as_sent, packed.clone(), size + 1), None);
            assert_eq!(unpack(Encoding(9), packed.clone(), size), None);
        }
        // A bomb is not unpacked: a gigabyte of zeros in a few kilobytes.
        let bomb = zstd::stream::encode_all(std::io::repeat(0).take(1 << 28), 3).expect("packed");
        assert_eq!(unpack(Encoding::ZSTD, bomb.into(), 1000), None);
        assert_eq!(unpack(Encoding::ZSTD, Bytes::from_static(b"no zstd at all"), 1000), None);
    }
}
