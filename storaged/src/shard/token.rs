//! Names what a completion of the ring belongs to.

/// What a completion belongs to: packed into the ring's 64-bit user data.
#[derive(Clone, Copy)]
pub enum Token {
    /// The eventfd that announces commands.
    Wake,
    /// Nothing waits for it.
    Ignore,
    /// The request in this slot.
    Io(u32),
    /// A queue's kick eventfd.
    Kick(Place),
    /// A write to a queue's call eventfd.
    Call(Place),
}

/// A start of a queue.
#[derive(Clone, Copy)]
pub struct Place {
    /// The device's index.
    pub device: u16,
    /// The queue's index.
    pub queue: u8,
    /// Which start of it; completions of older ones are stale.
    pub generation: u32,
}

impl Token {
    /// As user data.
    #[must_use]
    pub fn pack(self) -> u64 {
        let place = |tag: u64, p: Place| {
            tag << 56
                | u64::from(p.queue) << 48
                | u64::from(p.device) << 32
                | u64::from(p.generation)
        };
        match self {
            Self::Wake => 0,
            Self::Ignore => 1 << 56,
            Self::Io(slot) => 2 << 56 | u64::from(slot),
            Self::Kick(p) => place(3, p),
            Self::Call(p) => place(4, p),
        }
    }

    /// From user data.
    #[must_use]
    pub fn unpack(data: u64) -> Self {
        let place = Place {
            device: (data >> 32) as u16,
            queue: (data >> 48) as u8,
            generation: data as u32,
        };
        match data >> 56 {
            0 => Self::Wake,
            2 => Self::Io(data as u32),
            3 => Self::Kick(place),
            4 => Self::Call(place),
            _ => Self::Ignore,
        }
    }
}
