//! A B A B …: sides take turns, so that a machine that drifts drifts under all of them.

use anyhow::Result;

/// One side's measurement: a run gives one figure a metric.
pub type Side<'a> = &'a mut dyn FnMut() -> Result<Vec<f64>>;

/// Runs each side `runs` times in turn after one uncounted round; answers, for
/// each side and metric, the figures of its runs.
pub fn alternate(runs: usize, sides: &mut [Side<'_>]) -> Result<Vec<Vec<Vec<f64>>>> {
    let mut figures: Vec<Vec<Vec<f64>>> = vec![Vec::new(); sides.len()];
    for round in 0..=runs {
        for (side, kept) in sides.iter_mut().zip(&mut figures) {
            let sample = side()?;
            if round == 0 {
                *kept = vec![Vec::with_capacity(runs); sample.len()];
                continue;
            }
            for (column, value) in kept.iter_mut().zip(sample) {
                column.push(value);
            }
        }
    }
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_take_turns_and_the_first_round_does_not_count() {
        let order = std::cell::RefCell::new(String::new());
        let (mut a, mut b) = (0.0, 10.0);
        let mut ours = || {
            order.borrow_mut().push('A');
            a += 1.0;
            Ok(vec![a])
        };
        let mut peer = || {
            order.borrow_mut().push('B');
            b += 1.0;
            Ok(vec![b, -b])
        };
        let figures = alternate(2, &mut [&mut ours, &mut peer]).unwrap();
        assert_eq!(figures[0], [[2.0, 3.0]]);
        assert_eq!(figures[1], [[12.0, 13.0], [-12.0, -13.0]]);
        assert_eq!(*order.borrow(), "ABABAB");
    }
}
