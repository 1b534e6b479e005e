//! Angles of rotary position embedding, computed once for every position.

/// Which elements of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeLayout {
    /// Elements `2 i` and `2 i + 1`: the layout of the paper and of Llama weights in GGUF.
    Interleaved,
    /// Elements `i` and `i + rotary_dims / 2`: the layout of Hugging Face.
    HalfSplit,
}

/// Cosines and sines of every position and frequency.
#[derive(Clone, Debug)]
pub struct RopeTable {
    layout: RopeLayout,
    rotary_dims: usize,
    /// Numbers a position takes: each angle twice for interleaved pairs, so that the kernel need not spread them.
    width: usize,
    /// `[max_len][2][width]`: cosines, then sines; interleaved, the sine of the first of a pair is negated.
    angles: Vec<f32>,
}

impl RopeTable {
    /// The angles `position * inverse_frequencies[i]` for positions below `max_len`, computed in double precision. Scaling
    /// of the frequencies (linear, Llama 3, by factors) is the caller's.
    ///
    /// **Panics** if there are not `rotary_dims / 2` frequencies or `rotary_dims` is odd or greater than `head_dim`.
    pub fn new(
        head_dim: usize,
        rotary_dims: usize,
        inverse_frequencies: &[f32],
        layout: RopeLayout,
        max_len: usize,
    ) -> Self {
        assert!(
            rotary_dims <= head_dim && rotary_dims == 2 * inverse_frequencies.len(),
            "{} frequencies for {rotary_dims} of {head_dim} dimensions",
            inverse_frequencies.len(),
        );
        let width = match layout {
            RopeLayout::Interleaved => rotary_dims,
            RopeLayout::HalfSplit => rotary_dims / 2,
        };
        let mut angles = Vec::with_capacity(max_len * 2 * width);
        for position in 0..max_len {
            let turns = inverse_frequencies
                .iter()
                .map(|&f| (position as f64 * f64::from(f)).sin_cos());
            match layout {
                RopeLayout::Interleaved => {
                    angles.extend(turns.clone().flat_map(|(_, cos)| [cos as f32; 2]));
                    angles.extend(turns.flat_map(|(sin, _)| [-sin as f32, sin as f32]));
                }
                RopeLayout::HalfSplit => {
                    angles.extend(turns.clone().map(|(_, cos)| cos as f32));
                    angles.extend(turns.map(|(sin, _)| sin as f32));
                }
            }
        }
        Self {
            layout,
            rotary_dims,
            width,
            angles,
        }
    }

    /// The same angles, and what is turned becomes `magnitude` times as long.
    pub fn magnified(mut self, magnitude: f32) -> Self {
        if magnitude != 1.0 {
            self.angles.iter_mut().for_each(|angle| *angle *= magnitude);
        }
        self
    }

    /// Which elements turn together.
    pub fn layout(&self) -> RopeLayout {
        self.layout
    }

    /// Elements of a head that turn; the others stay.
    pub fn rotary_dims(&self) -> usize {
        self.rotary_dims
    }

    /// Positions in the table.
    pub fn max_len(&self) -> usize {
        self.angles.len() / (2 * self.width).max(1)
    }

    /// Cosines and sines of a position.
    ///
    /// **Panics** if the table does not reach that far.
    pub(crate) fn angles(&self, position: u32) -> (&[f32], &[f32]) {
        let first = position as usize * 2 * self.width;
        let row = self.angles.get(first..first + 2 * self.width);
        let row = row.unwrap_or_else(|| panic!("position {position} of {}", self.max_len()));
        row.split_at(self.width)
    }
}
