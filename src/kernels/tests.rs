//! Every function on every path of this machine, in both kinds of numbers, against f64.

use proptest::prelude::*;

use super::reference::{Random, Value, assert_close, values};
use super::{
    Activation, Cpu, Heads, Norm, Normalise, Number, Pool, Reach, Table, Weights, attention, embed_tokens,
    feed_forward_add_norm, layer_norm, linear, linear_add, linear_add_norm, pool_normalise, products, reference,
};

const NUMBERS: [Number; 2] = [Number::F32, Number::Bf16];
const ACTIVATIONS: [Activation; 3] = [Activation::None, Activation::Gelu, Activation::QuickGelu];

fn on_every_path(mut claim: impl FnMut(Cpu, Number, &str)) {
    for cpu in Cpu::available() {
        for number in NUMBERS {
            claim(cpu, number, &format!("{} {number:?}", cpu.name()));
        }
    }
}

/// Attention to rows `[query, key and value of all heads]`: the projection before it changes nothing, but that it rounds.
fn attended(cpu: Cpu, number: Number, qkv: &[f32], lengths: &[usize], heads: usize, reach: Reach) -> Vec<f32> {
    let columns = qkv.len() / lengths.iter().sum::<usize>();
    let identity: Vec<f32> =
        (0..columns * columns).map(|at| f32::from(u8::from(at / columns == at % columns))).collect();
    let mut buffer = Heads::new(heads, columns / 3, number);
    buffer.project(cpu, qkv, &Weights::pack(&[&identity], columns, number), &vec![0.0; columns]);
    let mut out = vec![f32::NAN; qkv.len() / 3];
    attention(cpu, &buffer, lengths, reach, &mut out);
    out
}

/// From tiny to large, and zeros.
fn scale() -> impl Strategy<Value = f32> {
    prop_oneof![4 => Just(1.0f32), 1 => Just(1e4), 1 => Just(1e-12), 1 => Just(0.0)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_linear_layer_with_what_follows_is_that_of_f64(
        seed in any::<u64>(), rows in 1usize..60, inputs in 1usize..70, outputs in 1usize..140, scale in scale(),
    ) {
        let mut random = Random::new(seed);
        let x = random.numbers(rows * inputs, scale);
        // Two parts stacked, as queries and keys are.
        let matrix = random.numbers(outputs * inputs, 0.5);
        let (first, second) = matrix.split_at(outputs / 2 * inputs);
        let (bias, layer_scale) = (random.numbers(outputs, 1.0), random.numbers(outputs, 1.0));
        let residual = random.numbers(rows * outputs, 1.0);
        let norm = random.norm(outputs, 1e-5);
        on_every_path(|cpu, number, what| {
            let weights = Weights::pack(&[first, second], inputs, number);
            let plain = reference::linear(&values(&x), &matrix, inputs, &bias, number);
            let mut out = vec![f32::NAN; rows * outputs];
            for act in ACTIVATIONS {
                let want: Vec<_> = plain.iter().map(|value| value.activated(act)).collect();
                linear(cpu, &x, &weights, &bias, act, &mut out);
                assert_close(&out, &want, &format!("{what} {act:?}"));
            }
            let added: Vec<_> = plain.iter().zip(&residual).map(|(y, &r)| y.plus(Value::of(r))).collect();
            linear_add(cpu, &x, &weights, &bias, None, &residual, &mut out);
            assert_close(&out, &added, what);
            let scaled = plain.iter().enumerate().map(|(at, y)| y.times(Value::of(layer_scale[at % outputs])));
            let scaled: Vec<_> = scaled.zip(&residual).map(|(y, &r)| y.plus(Value::of(r))).collect();
            linear_add(cpu, &x, &weights, &bias, Some(&layer_scale), &residual, &mut out);
            assert_close(&out, &scaled, what);
            linear_add_norm(cpu, &x, &weights, &bias, &residual, &norm, &mut out);
            assert_close(&out, &reference::layer_norm(&added, &norm), what);
        });
    }

    #[test]
    fn a_feed_forward_part_is_that_of_f64(
        seed in any::<u64>(), rows in 1usize..130, width in 1usize..40, inner in 1usize..90, act in 0usize..3,
    ) {
        let mut random = Random::new(seed);
        let x = random.numbers(rows * width, 2.0);
        let (up, down) = (random.numbers(inner * width, 0.5), random.numbers(width * inner, 0.5));
        let (up_bias, down_bias) = (random.numbers(inner, 1.0), random.numbers(width, 1.0));
        let norm = random.norm(width, 1e-5);
        let act = ACTIVATIONS[act];
        on_every_path(|cpu, number, what| {
            let inner_values = reference::linear(&values(&x), &up, width, &up_bias, number);
            let inner_values: Vec<_> = inner_values.into_iter().map(|value| value.activated(act)).collect();
            let low = reference::linear(&inner_values, &down, inner, &down_bias, number);
            let added: Vec<_> = low.iter().zip(&x).map(|(y, &r)| y.plus(Value::of(r))).collect();
            let mut out = vec![f32::NAN; rows * width];
            let (up, down) = (Weights::pack(&[&up], width, number), Weights::pack(&[&down], inner, number));
            feed_forward_add_norm(cpu, &x, &up, &up_bias, act, &down, &down_bias, &norm, &mut out);
            assert_close(&out, &reference::layer_norm(&added, &norm), what);
        });
    }

    #[test]
    fn attention_is_that_of_f64(
        seed in any::<u64>(), lengths in prop::collection::vec(1usize..71, 1..5), heads in 1usize..4,
        depth in prop_oneof![Just(8usize), Just(32), Just(64), Just(80), 1usize..50], spread in prop_oneof![Just(1.0f32), Just(6.0)],
    ) {
        let width = heads * depth;
        let tokens: usize = lengths.iter().sum();
        let qkv = Random::new(seed).numbers(tokens * 3 * width, spread);
        on_every_path(|cpu, number, what| {
            for reach in [Reach::All, Reach::Causal] {
                let out = attended(cpu, number, &qkv, &lengths, heads, reach);
                let mut first = 0;
                for &length in &lengths {
                    let text = &qkv[first * 3 * width..(first + length) * 3 * width];
                    let want = reference::attention(text, heads, width, reach == Reach::Causal, number);
                    assert_close(&out[first * width..][..length * width], &want, &format!("{what} {reach:?}"));
                    first += length;
                }
            }
        });
    }

    #[test]
    fn a_projection_spreads_the_columns_of_f64_over_the_heads(
        seed in any::<u64>(), rows in 1usize..130, inputs in 1usize..50, heads in 1usize..4, depth in prop_oneof![Just(32usize), 1usize..70],
    ) {
        // Attention over texts of one token gives the token's own value, whatever queries and keys are.
        let (mut random, width) = (Random::new(seed), heads * depth);
        let x = random.numbers(rows * inputs, 1.0);
        let (matrix, bias) = (random.numbers(3 * width * inputs, 0.5), random.numbers(3 * width, 1.0));
        on_every_path(|cpu, number, what| {
            let values = reference::linear(&values(&x), &matrix[2 * width * inputs..], inputs, &bias[2 * width..], number);
            let want: Vec<_> = values.into_iter().map(|value| value.kept_as(number)).collect();
            let mut qkv = Heads::new(heads, width, number);
            let mut out = vec![f32::NAN; rows * width];
            // The second time in a buffer that was used for another batch.
            for rows in [rows, rows.div_ceil(2)] {
                let weights = Weights::pack(&[&matrix], inputs, number);
                qkv.project(cpu, &x[..rows * inputs], &weights, &bias);
                attention(cpu, &qkv, &vec![1; rows], Reach::All, &mut out[..rows * width]);
                assert_close(&out[..rows * width], &want[..rows * width], what);
            }
        });
    }

    #[test]
    fn normalised_rows_are_those_of_f64(seed in any::<u64>(), rows in 1usize..80, width in 1usize..100, scale in scale()) {
        let mut random = Random::new(seed);
        let x = random.numbers(rows * width, scale);
        let norm = random.norm(width, 1e-5);
        for cpu in Cpu::available() {
            let mut out = vec![f32::NAN; x.len()];
            layer_norm(cpu, &x, &norm, &mut out);
            assert_close(&out, &reference::layer_norm(&values(&x), &norm), cpu.name());
        }
    }

    #[test]
    fn embedded_tokens_are_the_normed_sums_of_their_rows(
        seed in any::<u64>(), lengths in prop::collection::vec(0usize..20, 0..9), width in 1usize..70, first in 0usize..3,
    ) {
        let mut random = Random::new(seed);
        let (words, positions) = (random.numbers(50 * width, 1.0), random.numbers(23 * width, 1.0));
        let norm = random.norm(width, 1e-12);
        let texts: Vec<Vec<u32>> =
            lengths.iter().map(|&n| random.numbers(n, 25.0).iter().map(|x| (x + 25.0) as u32 % 50).collect()).collect();
        on_every_path(|cpu, number, what| {
            let mut want = Vec::new();
            for (place, &id) in texts.iter().flat_map(|text| text.iter().enumerate()) {
                for i in 0..width {
                    let word = Value::of(words[id as usize * width + i]).kept_as(number);
                    want.push(word.plus(Value::of(positions[(first + place) * width + i]).kept_as(number)));
                }
            }
            let mut out = vec![f32::NAN; want.len()];
            let ids: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
            let tables = [&words, &positions].map(|rows| Table::new(rows.clone(), width, number));
            embed_tokens(cpu, &tables[0], &tables[1], first, &ids, &norm, &mut out);
            assert_close(&out, &reference::layer_norm(&want, &norm), what);
        });
    }

    #[test]
    fn products_are_those_of_f64(seed in any::<u64>(), m in 1usize..150, n in 1usize..20, k in 1usize..100) {
        let mut random = Random::new(seed);
        let (a, b) = (random.numbers(m * k, 1.0), random.numbers(n * k, 1.0));
        let want = reference::linear(&values(&a), &b, k, &vec![0.0; n], Number::F32);
        for cpu in Cpu::available() {
            let mut out = vec![f32::NAN; m * n];
            products(cpu, &a, &b, k, &mut out);
            assert_close(&out, &want, cpu.name());
        }
    }

    #[test]
    fn a_pooled_row_stands_for_its_text(
        seed in any::<u64>(), lengths in prop::collection::vec(0usize..30, 1..8), width in 1usize..70,
    ) {
        let tokens: usize = lengths.iter().sum();
        let x = Random::new(seed).numbers(tokens * width, 1.0);
        for cpu in Cpu::available() {
            for pool in [Pool::Mean, Pool::First, Pool::Last] {
                let mut raw = vec![f32::NAN; lengths.len() * width];
                let mut unit = raw.clone();
                pool_normalise(cpu, &x, &lengths, pool, Normalise::Raw, &mut raw);
                pool_normalise(cpu, &x, &lengths, pool, Normalise::Unit, &mut unit);
                let mut first = 0;
                for (at, &length) in lengths.iter().enumerate() {
                    let of = |token: usize, i: usize| f64::from(x[(first + token) * width + i]);
                    let want: Vec<f64> = (0..width)
                        .map(|i| match pool {
                            _ if length == 0 => 0.0,
                            Pool::Mean => (0..length).map(|token| of(token, i)).sum::<f64>() / length as f64,
                            Pool::First => of(0, i),
                            Pool::Last => of(length - 1, i),
                        })
                        .collect();
                    let norm = want.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12);
                    let value = |value| Value { value, error: 1e-5 };
                    assert_close(&raw[at * width..][..width], &want.iter().map(|&x| value(x)).collect::<Vec<_>>(), "raw");
                    let want: Vec<_> = want.iter().map(|&x| value(x / norm)).collect();
                    assert_close(&unit[at * width..][..width], &want, "unit");
                    first += length;
                }
            }
        }
    }
}

#[test]
fn scores_far_apart_give_their_row_to_the_highest() {
    // One token that every query meets with +80, the others with −80.
    let (width, tokens) = (8, 40);
    let mut qkv = vec![0.0; tokens * 3 * width];
    for (token, row) in qkv.chunks_exact_mut(3 * width).enumerate() {
        row[0] = 80.0 * (width as f32).sqrt();
        row[width] = if token == 17 { 1.0 } else { -1.0 };
        row[2 * width..].fill(token as f32);
    }
    on_every_path(|cpu, number, what| {
        let out = attended(cpu, number, &qkv, &[tokens], 1, Reach::All);
        assert!(out.iter().all(|&x| x == 17.0), "{what}");
    });
}

#[test]
fn a_long_text_is_that_of_f64_though_it_is_cut_into_parts() {
    let (width, tokens) = (16, 600);
    let qkv = Random::new(7).numbers(tokens * 3 * width, 2.0);
    on_every_path(|cpu, number, what| {
        for reach in [Reach::All, Reach::Causal] {
            let out = attended(cpu, number, &qkv, &[tokens], 2, reach);
            let want = reference::attention(&qkv, 2, width, reach == Reach::Causal, number);
            assert_close(&out, &want, &format!("{what} {reach:?}"));
        }
    });
}

#[test]
fn a_nan_that_comes_in_goes_out_in_its_row_and_in_no_other() {
    let (rows, width) = (30, 40);
    let mut random = Random::new(3);
    let mut x = random.numbers(rows * width, 1.0);
    x[5 * width + 7] = f32::NAN;
    let matrix = random.numbers(width * width, 1.0);
    let (bias, norm) = (vec![0.0; width], random.norm(width, 1e-5));
    let check = |out: &[f32], what: &str| {
        for (at, row) in out.chunks_exact(width).enumerate() {
            assert_eq!(row.iter().all(|x| x.is_nan()), at == 5, "{what}, row {at}");
            assert_eq!(row.iter().any(|x| x.is_nan()), at == 5, "{what}, row {at}");
        }
    };
    on_every_path(|cpu, number, what| {
        let weights = Weights::pack(&[&matrix], width, number);
        let mut out = vec![0.0; rows * width];
        for act in ACTIVATIONS {
            linear(cpu, &x, &weights, &bias, act, &mut out);
            check(&out, &format!("{what} {act:?}"));
        }
        feed_forward_add_norm(cpu, &x, &weights, &bias, Activation::Gelu, &weights, &bias, &norm, &mut out);
        check(&out, what);
        layer_norm(cpu, &x, &norm, &mut out);
        check(&out, what);
        let mut pooled = vec![0.0; width];
        pool_normalise(cpu, &x[5 * width..6 * width], &[1], Pool::Mean, Normalise::Unit, &mut pooled);
        assert!(pooled.iter().all(|x| x.is_nan()), "{what}");
        // A query beyond all numbers spoils its own row alone: a last input, large in row 5 and else 0, that only queries weigh.
        let inputs = width + 1;
        let mut x = random.numbers(rows * inputs, 1.0);
        x.iter_mut().skip(width).step_by(inputs).for_each(|x| *x = 0.0);
        x[5 * inputs + width] = 1e30;
        let mut matrix = random.numbers(3 * width * inputs, 1.0);
        for (column, row) in matrix.chunks_exact_mut(inputs).enumerate() {
            row[width] = if column < width { 1e30 } else { 0.0 };
        }
        let mut qkv = Heads::new(1, width, number);
        qkv.project(cpu, &x, &Weights::pack(&[&matrix], inputs, number), &vec![0.0; 3 * width]);
        attention(cpu, &qkv, &[rows], Reach::All, &mut out);
        check(&out, what);
    });
}

#[test]
fn nothing_in_gives_nothing_out() {
    on_every_path(|cpu, number, _| {
        let weights = Weights::pack(&[&[1.0; 12]], 3, number);
        linear(cpu, &[], &weights, &[0.0; 4], Activation::Gelu, &mut []);
        let mut qkv = Heads::new(2, 4, number);
        qkv.project(cpu, &[], &Weights::pack(&[&[1.0; 36]], 3, number), &[0.0; 12]);
        attention(cpu, &qkv, &[], Reach::All, &mut []);
        layer_norm(cpu, &[], &Norm { gamma: vec![1.0], beta: vec![0.0], eps: 1e-5 }, &mut []);
        pool_normalise(cpu, &[], &[], Pool::Mean, Normalise::Unit, &mut []);
        products(cpu, &[], &[1.0], 1, &mut []);
        let table = Table::new(vec![1.0; 12], 3, number);
        let norm = Norm { gamma: vec![1.0; 3], beta: vec![0.0; 3], eps: 1e-5 };
        embed_tokens(cpu, &table, &table, 0, &[], &norm, &mut []);
    });
}

#[test]
#[should_panic(expected = "the input is whole rows of 3")]
fn a_shape_that_does_not_fit_is_refused_at_the_entry() {
    let weights = Weights::pack(&[&[1.0; 12]], 3, Number::F32);
    linear(Cpu::best(), &[1.0; 4], &weights, &[0.0; 4], Activation::None, &mut [0.0; 4]);
}
