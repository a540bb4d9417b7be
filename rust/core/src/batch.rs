//! Rows of tokens, padded into matrices.

use crate::error::{Error, Result};

/// The label of a token that takes no part in the loss: pads, special tokens, all but the target.
pub const IGNORED_LABEL: i64 = -100;

/// The most cells, rows × longest row, of one matrix: 2 GiB of int64.
pub const MAX_CELLS: usize = 1 << 28;

/// The side on which rows are padded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PaddingSide {
    /// Pads come first.
    Left,
    /// Pads come last.
    #[default]
    Right,
}

impl PaddingSide {
    /// Finds a side by its name.
    ///
    /// # Errors
    /// A name that is neither `left` nor `right`.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "left" => Ok(Self::Left),
            "right" => Ok(Self::Right),
            _ => Err(Error::Argument(format!(
                "unknown padding side '{name}'; it must be 'left' or 'right'"
            ))),
        }
    }
}

/// The tokens of one text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Row {
    /// Token ids.
    pub ids: Vec<i64>,
    /// Place of the subject's last token, where a subject was asked for.
    pub subject_last: Option<usize>,
    /// For every token, whether it is a part of the target; empty where none was asked for.
    pub in_target: Vec<bool>,
}

/// Padded rows, row-major: n rows of t tokens.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Number of rows, n.
    pub rows: usize,
    /// Tokens of the longest row, t.
    pub width: usize,
    /// Token ids `[n, t]`.
    pub input_ids: Vec<i64>,
    /// 1 for tokens, 0 for pads `[n, t]`.
    pub attention_mask: Vec<i64>,
    /// The ids of the target's tokens, [`IGNORED_LABEL`] elsewhere `[n, t]`.
    pub labels: Option<Vec<i64>>,
    /// Place of the subject's last token in the padded row `[n]`.
    pub subject_last: Option<Vec<i64>>,
    /// Tokens of each row without its pads `[n]`.
    pub lengths: Vec<i64>,
}

/// What a batch holds beside ids, mask and lengths.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Extras {
    pub(crate) labels: bool,
    pub(crate) subject_last: bool,
}

impl Batch {
    /// Pads the rows to the longest of them.
    pub(crate) fn pad(
        rows: &[Row],
        side: PaddingSide,
        pad_id: i64,
        extras: Extras,
    ) -> Result<Self> {
        let width = rows.iter().map(|row| row.ids.len()).max().unwrap_or(0);
        let cells = rows
            .len()
            .checked_mul(width)
            .filter(|&cells| cells <= MAX_CELLS)
            .ok_or_else(|| {
                Error::Argument(format!(
                    "{} rows of up to {width} tokens are too many for one batch \
                     (at most {MAX_CELLS} cells); encode fewer rows at a time",
                    rows.len()
                ))
            })?;
        let mut batch = Self {
            rows: rows.len(),
            width,
            input_ids: reserve(cells)?,
            attention_mask: reserve(cells)?,
            labels: if extras.labels {
                Some(reserve(cells)?)
            } else {
                None
            },
            subject_last: if extras.subject_last {
                Some(reserve(rows.len())?)
            } else {
                None
            },
            lengths: reserve(rows.len())?,
        };
        for row in rows {
            batch.push(row, side, pad_id)?;
        }
        Ok(batch)
    }

    fn push(&mut self, row: &Row, side: PaddingSide, pad_id: i64) -> Result<()> {
        let pads = self.width.saturating_sub(row.ids.len());
        let (before, after) = match side {
            PaddingSide::Left => (pads, 0),
            PaddingSide::Right => (0, pads),
        };
        append(
            &mut self.input_ids,
            before,
            row.ids.iter().copied(),
            after,
            pad_id,
        );
        append(
            &mut self.attention_mask,
            before,
            row.ids.iter().map(|_| 1),
            after,
            0,
        );
        if let Some(labels) = &mut self.labels {
            let pairs = row.ids.iter().zip(&row.in_target);
            let label = pairs.map(|(&id, &wanted)| if wanted { id } else { IGNORED_LABEL });
            append(labels, before, label, after, IGNORED_LABEL);
        }
        if let (Some(places), Some(place)) = (&mut self.subject_last, row.subject_last) {
            places.push(signed(place.saturating_add(before))?);
        }
        self.lengths.push(signed(row.ids.len())?);
        Ok(())
    }
}

fn append(
    cells: &mut Vec<i64>,
    before: usize,
    tokens: impl Iterator<Item = i64>,
    after: usize,
    pad: i64,
) {
    cells.extend(std::iter::repeat_n(pad, before));
    cells.extend(tokens);
    cells.extend(std::iter::repeat_n(pad, after));
}

fn reserve(cells: usize) -> Result<Vec<i64>> {
    let mut vector = Vec::new();
    vector.try_reserve_exact(cells).map_err(|_| {
        Error::Argument(format!(
            "no memory for a batch of {cells} cells; encode fewer rows at a time"
        ))
    })?;
    Ok(vector)
}

fn signed(value: usize) -> Result<i64> {
    i64::try_from(value).map_err(|_| Error::Argument(format!("{value} does not fit into int64")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ids: &[i64], subject_last: usize, in_target: &[bool]) -> Row {
        Row {
            ids: ids.to_vec(),
            subject_last: Some(subject_last),
            in_target: in_target.to_vec(),
        }
    }

    const BOTH: Extras = Extras {
        labels: true,
        subject_last: true,
    };

    #[test]
    fn pads_stand_on_the_side_asked_for() {
        let rows = [
            row(&[5, 6, 7], 1, &[false, true, true]),
            row(&[8], 0, &[true]),
        ];
        let right = Batch::pad(&rows, PaddingSide::Right, 9, BOTH).unwrap();
        assert_eq!(right.input_ids, [5, 6, 7, 8, 9, 9]);
        assert_eq!(right.attention_mask, [1, 1, 1, 1, 0, 0]);
        assert_eq!(right.labels.unwrap(), [-100, 6, 7, 8, -100, -100]);
        assert_eq!(right.subject_last.unwrap(), [1, 0]);
        let left = Batch::pad(&rows, PaddingSide::Left, 9, BOTH).unwrap();
        assert_eq!(left.input_ids, [5, 6, 7, 9, 9, 8]);
        assert_eq!(left.attention_mask, [1, 1, 1, 0, 0, 1]);
        assert_eq!(left.labels.unwrap(), [-100, 6, 7, -100, -100, 8]);
        assert_eq!(left.subject_last.unwrap(), [1, 2]);
        assert_eq!(left.lengths, [3, 1]);
    }

    #[test]
    fn no_rows_and_empty_rows_are_fine() {
        let none = Batch::pad(&[], PaddingSide::Left, 0, Extras::default()).unwrap();
        assert_eq!((none.rows, none.width), (0, 0));
        let empty = Batch::pad(&[Row::default()], PaddingSide::Left, 0, Extras::default()).unwrap();
        assert_eq!((empty.rows, empty.width, empty.lengths), (1, 0, vec![0]));
    }

    #[test]
    fn a_batch_beyond_the_bound_is_refused() {
        let long = Row {
            ids: vec![0; 1 << 15],
            ..Row::default()
        };
        let rows = vec![long.clone(); 1 << 4];
        assert!(Batch::pad(&rows, PaddingSide::Left, 0, Extras::default()).is_ok());
        let mut many = vec![Row::default(); (MAX_CELLS >> 15) + 1];
        many[0] = long;
        let error = Batch::pad(&many, PaddingSide::Left, 0, Extras::default()).unwrap_err();
        assert!(error.to_string().contains("encode fewer rows"));
    }
}
