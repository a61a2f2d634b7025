//! The line that fits points best.

/// Points, and the line for which the sum of the squares of how far they are from it is least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinearFit {
    count: i128,
    x: i128,
    y: i128,
    xx: i128,
    xy: i128,
}

impl LinearFit {
    /// Adds a point.
    pub fn add(&mut self, x: u64, y: u64) {
        let (x, y) = (i128::from(x), i128::from(y));
        self.count += 1;
        self.x += x;
        self.y += y;
        self.xx += x * x;
        self.xy += x * y;
    }

    /// What the line has at 0, and by how much it rises with each step, to the next whole number. `None` if all points
    /// have the same x.
    pub fn fit(&self) -> Option<(i64, i64)> {
        let square = self.count * self.xx - self.x * self.x;
        if square == 0 {
            return None;
        }
        let slope = self.count * self.xy - self.x * self.y;
        let start = self.y * self.xx - self.x * self.xy;
        let whole = |value| i64::try_from(rounded(value, square)).ok();
        Some((whole(start)?, whole(slope)?))
    }
}

/// `value / by`, which is positive, to the next whole number.
const fn rounded(value: i128, by: i128) -> i128 {
    (2 * value + by).div_euclid(2 * by)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fit(points: &[(u64, u64)]) -> Option<(i64, i64)> {
        let mut fit = LinearFit::default();
        points.iter().for_each(|(x, y)| fit.add(*x, *y));
        fit.fit()
    }

    #[test]
    fn points_that_are_no_line() {
        assert_eq!(fit(&[]), None);
        assert_eq!(fit(&[(3, 5)]), None);
        assert_eq!(fit(&[(3, 5), (3, 6)]), None);
        // By hand: the slope is 1.4 and the start 1.1.
        assert_eq!(fit(&[(0, 1), (1, 3), (2, 4), (3, 5), (4, 7)]), Some((1, 1)));
        assert_eq!(fit(&[(0, 10), (10, 0)]), Some((10, -1)));
    }

    proptest! {
        #[test]
        fn a_line_is_found_again(start in 0u64..1 << 40, slope in 0u64..1 << 20, xs in prop::collection::vec(0u64..1 << 16, 2..20)) {
            let points: Vec<_> = xs.iter().map(|x| (*x, start + slope * x)).collect();
            let expected = (xs.iter().any(|x| *x != xs[0])).then_some((start as i64, slope as i64));
            prop_assert_eq!(fit(&points), expected);
        }
    }
}
