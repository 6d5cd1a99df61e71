//! Functions of single numbers, written so that loops over them become vector code: no branches, no tables, no calls.
//!
//! Each takes the instructions it runs with; NaN gives NaN.

use super::product::Isa;

/// 2^x for x ≤ 127; 0 below −127.
///
/// x = n + r with |r| ≤ ½; 2^r by a polynomial fitted to the smallest maximum relative error (Lawson's reweighted least squares
/// on 2,001 Chebyshev nodes, in f64; the constant held at 1, so that 2^0 is exact): 9.2e-8.
#[inline(always)]
pub(super) fn exp2<I: Isa>(isa: I, x: f32) -> f32 {
    // Adding 1.5 · 2^23 leaves the nearest integer in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let x = if x < -127.0 { -127.0 } else { x };
    let shifted = x + ROUND;
    let r = x - (shifted - ROUND);
    let mut p = 1.326_472_7e-3;
    #[expect(clippy::approx_constant, reason = "the fit's own coefficient, which is near ln 2")]
    for c in [9.671_513e-3, 5.550_733_7e-2, 2.402_224_2e-1, 6.931_47e-1, 1.0] {
        p = isa.mul_add(p, r, c);
    }
    // 2^n is its exponent alone; that of −127 is zero.
    p * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
}

/// x · Φ(x), the form of gelu with the error function.
#[inline(always)]
pub(super) fn gelu<I: Isa>(isa: I, x: f32) -> f32 {
    let half = 0.5 * x;
    isa.mul_add(half, erf(isa, x * std::f32::consts::FRAC_1_SQRT_2), half)
}

/// x · sigmoid(1.702 x), as CLIP has it.
#[inline(always)]
pub(super) fn quick_gelu<I: Isa>(isa: I, x: f32) -> f32 {
    const RATE: f32 = -1.702 * std::f32::consts::LOG2_E;
    let t = x * RATE;
    // Beyond, the result is −0 to 10^−36.
    let t = if t > 126.0 { 126.0 } else { t };
    x / (1.0 + exp2(isa, t))
}

/// The error function.
///
/// x · P(x²) / Q(x²) on |x| ≤ 3.9, beyond which it is 1 to 3.5e-8. P of degree 6 and Q of degree 4 were fitted to the smallest
/// maximum error (Lawson's reweighted least squares on 1,500 Chebyshev nodes, the denominator linearised, in f64): 4.1e-8. With the rounding of f32 it is off by at most
/// 3.2e-7, measured over all magnitudes.
#[inline(always)]
pub(super) fn erf<I: Isa>(isa: I, x: f32) -> f32 {
    let x = if x > 3.9 { 3.9 } else { x };
    let x = if x < -3.9 { -3.9 } else { x };
    let t = x * x;
    let mut p = 2.011_856_3e-8;
    for c in [-1.996_921_5e-6, 1.474_754_2e-4, 3.896_311_4e-3, 5.114_901e-2, 2.042_257_2e-1, 1.128_378_8] {
        p = isa.mul_add(p, t, c);
    }
    let mut q = 1.006_610_1e-3;
    for c in [1.473_055_9e-2, 1.167_858_5e-1, 5.143_193_4e-1, 1.0] {
        q = isa.mul_add(q, t, c);
    }
    x * p / q
}

#[cfg(test)]
mod tests {
    use super::super::product::Portable;
    use super::super::reference;
    use super::*;

    /// Every 1,024th number of f32 from −`most` to `most`, by bits: dense where numbers are small.
    fn numbers(most: f32) -> impl Iterator<Item = f32> {
        let positive = (0..=most.to_bits()).step_by(1024).map(f32::from_bits);
        positive.flat_map(|x| [x, -x])
    }

    #[test]
    fn the_error_function_is_within_3_2e_7_everywhere() {
        let off = numbers(12.0)
            .map(|x| (f64::from(erf(Portable, x)) - reference::erf(f64::from(x))).abs())
            .fold(0.0, f64::max);
        assert!(off < 3.2e-7, "{off:e}");
        assert_eq!(erf(Portable, 0.0), 0.0);
        assert!(erf(Portable, f32::NAN).is_nan());
    }

    #[test]
    fn powers_of_two_are_within_3e_7_of_themselves_and_whole_ones_exact() {
        for x in numbers(125.0) {
            let want = f64::from(x).exp2();
            assert!((f64::from(exp2(Portable, x)) - want).abs() <= 3e-7 * want, "2^{x}");
        }
        for n in -126..=127 {
            assert_eq!(exp2(Portable, n as f32), (n as f32).exp2());
        }
        assert_eq!(exp2(Portable, f32::NEG_INFINITY), 0.0);
        assert_eq!(exp2(Portable, -1e30), 0.0);
        assert!(exp2(Portable, f32::NAN).is_nan());
    }

    #[test]
    fn activations_end_as_they_should() {
        for act in [gelu::<Portable>, quick_gelu::<Portable>] {
            assert_eq!(act(Portable, 1e4), 1e4);
            assert!(act(Portable, -1e4).abs() < 1e-3);
            assert_eq!(act(Portable, 0.0), 0.0);
            assert!(act(Portable, f32::NAN).is_nan());
        }
    }
}
