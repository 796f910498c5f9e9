//! Names for instances whose caller chose none.

const QUALITIES: [&str; 16] = [
    "calm", "cosy", "dozy", "drowsy", "gentle", "hushed", "idle", "mellow", "mild", "nodding", "placid",
    "quiet", "resting", "serene", "still", "tranquil",
];

const ANIMALS: [&str; 16] = [
    "badger", "bat", "bear", "chipmunk", "dormouse", "fox", "hamster", "hedgehog", "marmot", "newt", "otter",
    "owl", "squirrel", "toad", "tortoise", "vole",
];

/// A name that is not taken: two words, and a number when those are used up. `seed` chooses.
pub(super) fn free(seed: u64, taken: impl Fn(&str) -> bool) -> String {
    let pick = |words: &[&'static str; 16], shift: u32| {
        let at = usize::try_from((seed >> shift) & 15).unwrap_or(0);
        words.get(at).copied().unwrap_or("quiet")
    };
    let name = format!("{}-{}", pick(&QUALITIES, 0), pick(&ANIMALS, 4));
    if !taken(&name) {
        return name;
    }
    (0_u64..)
        .map(|more| format!("{name}-{}", seed.wrapping_add(more) % 100_000))
        .find(|numbered| !taken(numbered))
        .unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_valid_and_free() {
        for seed in 0..512 {
            let name = free(seed * 7919, |_| false);
            assert!(name.parse::<dormouse_model::Name>().is_ok(), "{name}");
        }
        let first = free(3, |_| false);
        assert_ne!(free(3, |name| name == first), first);
    }
}
