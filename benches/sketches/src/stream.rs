//! Seeded streams of items.

use sketches::mix;

/// SplitMix64.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Ranks from 1 to `items`, rank `k` with a probability in proportion to `k^-s`: rejection-inversion (Hörmann and Derflinger,
/// *Rejection-inversion to generate variates from monotone discrete distributions*, 1996), which needs no table.
pub(crate) struct Zipf {
    items: f64,
    s: f64,
    from: f64,
    to: f64,
}

impl Zipf {
    pub(crate) fn new(items: u64, s: f64) -> Zipf {
        let mut zipf = Zipf { items: items as f64, s, from: 0.0, to: 0.0 };
        (zipf.from, zipf.to) = (zipf.area(1.5) - 1.0, zipf.area(items as f64 + 0.5));
        zipf
    }

    /// Of the curve `x^-s` up to `x`.
    fn area(&self, x: f64) -> f64 {
        if self.s == 1.0 { x.ln() } else { (x.powf(1.0 - self.s) - 1.0) / (1.0 - self.s) }
    }

    fn at_area(&self, area: f64) -> f64 {
        if self.s == 1.0 { area.exp() } else { (area * (1.0 - self.s) + 1.0).powf(1.0 / (1.0 - self.s)) }
    }

    pub(crate) fn next(&self, rng: &mut Rng) -> u64 {
        loop {
            let area = self.to + rng.unit() * (self.from - self.to);
            let rank = self.at_area(area).round().clamp(1.0, self.items);
            if area >= self.area(rank + 0.5) - rank.powf(-self.s) {
                return rank as u64;
            }
        }
    }
}
