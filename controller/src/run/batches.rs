//! `serial`: a play's hosts, batch by batch.

use rollcall_engine::playbook::model::BatchSize;

/// Cuts hosts into batches. The last size repeats; a percentage is of all hosts, one at least.
pub(crate) fn batches<T: Clone>(hosts: &[T], sizes: &[BatchSize]) -> Vec<Vec<T>> {
    let mut out = Vec::new();
    let mut rest = hosts;
    let mut sizes = sizes.iter().peekable();
    let mut last = None;
    while !rest.is_empty() {
        last = sizes.next().or(last);
        let size = match last {
            None => rest.len(),
            Some(BatchSize::Count(n)) => (*n).max(1),
            #[expect(clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "percentages of host counts")]
            Some(BatchSize::Percent(p)) => ((hosts.len() as f64 * p / 100.0).floor() as usize).max(1),
        };
        let (batch, more) = rest.split_at(size.min(rest.len()));
        out.push(batch.to_vec());
        rest = more;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(n: usize, sizes: &[BatchSize]) -> Vec<usize> {
        batches(&(0..n).collect::<Vec<_>>(), sizes).iter().map(Vec::len).collect()
    }

    #[test]
    fn serial_is_ansibles() {
        use BatchSize::{Count, Percent};
        assert_eq!(sizes(7, &[]), [7]);
        assert_eq!(sizes(7, &[Count(3)]), [3, 3, 1]);
        assert_eq!(sizes(7, &[Count(1), Count(2)]), [1, 2, 2, 2]);
        assert_eq!(sizes(10, &[Percent(30.0)]), [3, 3, 3, 1]);
        assert_eq!(sizes(3, &[Percent(10.0)]), [1, 1, 1]);
        assert_eq!(sizes(3, &[Count(0)]), [1, 1, 1]);
        assert_eq!(sizes(0, &[Count(2)]), [0; 0]);
    }
}
