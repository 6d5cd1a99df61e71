//! The same functions in f64, one number at a time, and the random matrices that both are tried on.
//!
//! A [`Value`] carries how far f32 may be off: what bounds the rounding of a sum of K products is K times the unit of f32 times
//! the sum of their magnitudes, whatever the order of summation.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::layer::Activation;
use super::norm::Norm;
use super::weights::{Number, from_bf16, to_bf16};

const UNIT: f64 = f32::EPSILON as f64;

/// A number and the error that is allowed about it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Value {
    pub(super) value: f64,
    pub(super) error: f64,
}

impl Value {
    pub(super) fn of(x: f32) -> Self {
        Self { value: f64::from(x), error: 0.0 }
    }

    /// Σ of products, with the bound of its rounding.
    pub(super) fn dot(pairs: impl Iterator<Item = (Self, Self)>) -> Self {
        let (mut value, mut error, mut magnitude, mut terms) = (0.0, 0.0, 0.0, 4.0);
        for (a, b) in pairs {
            value += a.value * b.value;
            error += a.value.abs() * b.error + b.value.abs() * a.error + a.error * b.error;
            magnitude += (a.value * b.value).abs();
            terms += 1.0;
        }
        Self { value, error: error + terms * UNIT * magnitude + 1e-37 }
    }

    pub(super) fn plus(self, other: Self) -> Self {
        let value = self.value + other.value;
        Self { value, error: self.error + other.error + UNIT * (self.value.abs() + other.value.abs()) }
    }

    pub(super) fn times(self, other: Self) -> Self {
        Self::dot([(self, other)].into_iter())
    }

    /// What the other side may round to when it keeps this number in `number`.
    pub(super) fn kept_as(self, number: Number) -> Self {
        match number {
            Number::F32 => self,
            Number::Bf16 if self.error == 0.0 => Self::of(from_bf16(to_bf16(self.value as f32))),
            Number::Bf16 => Self { error: self.error + self.value.abs() / 256.0 + 1e-37, ..self },
        }
    }

    pub(super) fn activated(self, act: Activation) -> Self {
        let x = self.value;
        // Slopes: gelu's stays below 1.13, quick gelu's below 1.11. Errors of the functions: see `math.rs`.
        let (value, slope) = match act {
            Activation::None => (x, 1.0),
            Activation::Gelu => (0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)), 1.13),
            Activation::QuickGelu => (x / (1.0 + (-1.702 * x).exp()), 1.11),
        };
        let own = if act == Activation::None { 0.0 } else { 3e-7 * x.abs() + 1e-30 };
        Self { value, error: slope * self.error + own }
    }
}

/// The error function: its series, or 1 where f64 no longer tells it from that.
pub(super) fn erf(x: f64) -> f64 {
    if x.is_nan() || x.abs() > 6.0 {
        return if x.is_nan() { x } else { x.signum() };
    }
    // erf x = 2/√π · e^(−x²) · Σ 2ⁿ x^(2n+1) / (1·3·…·(2n+1)): all terms have one sign, so nothing cancels.
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > 1e-20 * sum.abs() {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    sum * (-x * x).exp() * std::f64::consts::FRAC_2_SQRT_PI
}

/// x·Wᵀ + bias; `matrix`: `[out, in]`, as published.
pub(super) fn linear(x: &[Value], matrix: &[f32], inputs: usize, bias: &[f32], number: Number) -> Vec<Value> {
    let mut out = Vec::new();
    for row in x.chunks_exact(inputs) {
        for (column, &bias) in matrix.chunks_exact(inputs).zip(bias) {
            let pairs = row.iter().zip(column).map(|(x, &w)| (x.kept_as(number), Value::of(w).kept_as(number)));
            out.push(Value::dot(pairs).plus(Value::of(bias)));
        }
    }
    out
}

/// Normalises each row.
pub(super) fn layer_norm(x: &[Value], norm: &Norm) -> Vec<Value> {
    let count = norm.gamma.len() as f64;
    let mut out = Vec::new();
    for row in x.chunks_exact(norm.gamma.len()) {
        let mean = row.iter().map(|x| x.value).sum::<f64>() / count;
        let variance = row.iter().map(|x| (x.value - mean).powi(2)).sum::<f64>() / count;
        let scale = 1.0 / (variance + f64::from(norm.eps)).sqrt();
        let largest = row.iter().map(|x| x.value.abs()).fold(0.0, f64::max);
        let error = row.iter().map(|x| x.error).fold(0.0, f64::max) + (8.0 + count.sqrt()) * UNIT * largest;
        for ((x, &gamma), &beta) in row.iter().zip(&norm.gamma).zip(&norm.beta) {
            let (gamma, beta) = (f64::from(gamma), f64::from(beta));
            let unit = (x.value - mean) * scale;
            // The scale itself moves by the error relative to the spread.
            let own = error * scale * (2.0 + unit.abs()) + 8.0 * UNIT * unit.abs();
            let value = unit * gamma + beta;
            out.push(Value { value, error: gamma.abs() * own + UNIT * (value.abs() + beta.abs()) });
        }
    }
    out
}

/// softmax(q kᵀ / √D) v of one text; queries, keys, values and shares kept in `number`.
pub(super) fn attention(qkv: &[f32], heads: usize, width: usize, causal: bool, number: Number) -> Vec<Value> {
    let (tokens, depth) = (qkv.len() / (3 * width), width / heads);
    let at = |token: usize, part: usize, head: usize| &qkv[(token * 3 + part) * width + head * depth..][..depth];
    let mut out = vec![Value::of(0.0); tokens * width];
    for head in 0..heads {
        for token in 0..tokens {
            let seen = if causal { token + 1 } else { tokens };
            let scores: Vec<Value> = (0..seen)
                .map(|other| {
                    let pairs = at(token, 0, head).iter().zip(at(other, 1, head));
                    let score =
                        Value::dot(pairs.map(|(&q, &k)| (Value::of(q).kept_as(number), Value::of(k).kept_as(number))));
                    let scale = 1.0 / (depth as f64).sqrt();
                    Value {
                        value: score.value * scale,
                        error: score.error * scale + 4.0 * UNIT * score.value.abs() * scale,
                    }
                })
                .collect();
            let highest = scores.iter().map(|s| s.value).fold(f64::NEG_INFINITY, f64::max);
            // e^(s ± error) is off by that share.
            let shares: Vec<Value> = scores
                .iter()
                .map(|s| {
                    let value = (s.value - highest).exp();
                    Value { value, error: value * (3.0 * s.error + 1e-6).min(1.0) + 1e-37 }
                })
                .collect();
            let sum = shares.iter().fold(Value::of(0.0), |sum, &share| sum.plus(share));
            for i in 0..depth {
                let value = |other: usize| Value::of(at(other, 2, head)[i]).kept_as(number);
                let pairs = shares.iter().enumerate().map(|(other, &s)| (s.kept_as(number), value(other)));
                let whole = Value::dot(pairs);
                let value = whole.value / sum.value;
                let error = (whole.error + value.abs() * sum.error) / sum.value + 4.0 * UNIT * value.abs();
                out[token * width + head * depth + i] = Value { value, error };
            }
        }
    }
    out
}

/// Random matrices, reproducible.
pub(super) struct Random(ChaCha8Rng);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// Between −scale and scale.
    pub(super) fn numbers(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| (self.0.random::<f32>() * 2.0 - 1.0) * scale).collect()
    }

    pub(super) fn norm(&mut self, width: usize, eps: f32) -> Norm {
        Norm { gamma: self.numbers(width, 2.0), beta: self.numbers(width, 1.0), eps }
    }
}

pub(super) fn values(x: &[f32]) -> Vec<Value> {
    x.iter().map(|&x| Value::of(x)).collect()
}

/// Each number lies within the error of its value.
#[track_caller]
pub(super) fn assert_close(got: &[f32], want: &[Value], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (at, (&got, want)) in got.iter().zip(want).enumerate() {
        let off = (f64::from(got) - want.value).abs();
        assert!(off <= want.error, "{what}: number {at} is {got}, should be {} ± {:e}", want.value, want.error);
    }
}
