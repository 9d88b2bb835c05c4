//! Writes BPF programs: instructions with named registers, jumps to labels. What is built here, the kernel's verifier
//! judges; so there are no checks but those of the labels.
//!
//! Encoding: the kernel's `Documentation/bpf/standardization/instruction-set.rst` (RFC 9669).

use std::{
    collections::HashMap,
    os::fd::{AsFd, AsRawFd},
};

/// A register. `R1` to `R5` are a call's arguments and lost by it, `R6` to `R9` survive calls, `R10` is the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Register {
    R0 = 0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    R10,
}

pub(super) use Register::{R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10};

/// Width of a load or store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Width {
    /// 32 bits.
    Word = 0x00,
    /// 8 bits.
    Byte = 0x10,
    /// 64 bits.
    Double = 0x18,
}

pub(super) use Width::{Byte, Double, Word};

/// When a jump is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum If {
    Equal = 0x10,
    Greater = 0x20,
    NotEqual = 0x50,
    /// Unsigned, as `Greater`.
    AtMost = 0xb0,
}

/// `enum bpf_func_id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum Helper {
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    GetCurrentPidTgid = 14,
    GetCurrentTask = 35,
    SockOpsFlagsSet = 59,
    SockHashUpdate = 70,
    MsgRedirectHash = 71,
    SkStorageGet = 107,
    ProbeReadKernel = 113,
    GetNsCurrentPidTgid = 120,
    GetNetnsCookie = 122,
}

const CLASS_LOAD_IMMEDIATE: u8 = 0x18;
const CLASS_LOAD: u8 = 0x61;
const CLASS_STORE_IMMEDIATE: u8 = 0x62;
const CLASS_STORE: u8 = 0x63;
const ALU64: u8 = 0x07;
const ALU32: u8 = 0x04;
const JUMP64: u8 = 0x05;
const JUMP32: u8 = 0x06;
const FROM_REGISTER: u8 = 0x08;
const OP_ADD: u8 = 0x00;
const OP_SUB: u8 = 0x10;
const OP_DIV: u8 = 0x30;
const OP_AND: u8 = 0x50;
const OP_RSH: u8 = 0x70;
const OP_MOV: u8 = 0xb0;
const SWAP_TO_BIG_ENDIAN: u8 = 0xdc;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
/// `src_reg` of a 64-bit immediate: the descriptor of a map.
const PSEUDO_MAP_FD: u8 = 1;
/// `src_reg` of a 64-bit immediate: the address of the value of a map with a single one.
const PSEUDO_MAP_VALUE: u8 = 2;

/// A program that is being written.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    code: Vec<u64>,
    labels: HashMap<&'static str, usize>,
    jumps: Vec<(usize, &'static str)>,
}

impl Assembler {
    fn push(&mut self, opcode: u8, to: Register, from: u8, offset: i16, immediate: i32) -> &mut Self {
        let registers = u64::from(from << 4 | to as u8);
        let word =
            u64::from(opcode) | registers << 8 | u64::from(offset as u16) << 16 | u64::from(immediate as u32) << 32;
        self.code.push(word);
        self
    }

    /// `to = from`.
    pub(super) fn copy(&mut self, to: Register, from: Register) -> &mut Self {
        self.push(ALU64 | OP_MOV | FROM_REGISTER, to, from as u8, 0, 0)
    }

    /// `to = value`.
    pub(super) fn set(&mut self, to: Register, value: i32) -> &mut Self {
        self.push(ALU64 | OP_MOV, to, 0, 0, value)
    }

    /// `to = value`, of 64 bits.
    pub(super) fn set_wide(&mut self, to: Register, value: u64) -> &mut Self {
        self.push(CLASS_LOAD_IMMEDIATE, to, 0, 0, value as i32).push(0, R0, 0, 0, (value >> 32) as i32)
    }

    /// `to += value`.
    pub(super) fn add(&mut self, to: Register, value: i32) -> &mut Self {
        self.push(ALU64 | OP_ADD, to, 0, 0, value)
    }

    /// `to += from`.
    pub(super) fn add_register(&mut self, to: Register, from: Register) -> &mut Self {
        self.push(ALU64 | OP_ADD | FROM_REGISTER, to, from as u8, 0, 0)
    }

    /// `to -= from`.
    pub(super) fn subtract_register(&mut self, to: Register, from: Register) -> &mut Self {
        self.push(ALU64 | OP_SUB | FROM_REGISTER, to, from as u8, 0, 0)
    }

    /// `to &= value`, in 64 bits with the sign extended.
    pub(super) fn and(&mut self, to: Register, value: i32) -> &mut Self {
        self.push(ALU64 | OP_AND, to, 0, 0, value)
    }

    /// `to &= value`, in 32 bits: the upper half becomes zero.
    pub(super) fn and32(&mut self, to: Register, value: u32) -> &mut Self {
        self.push(ALU32 | OP_AND, to, 0, 0, value as i32)
    }

    /// `to >>= bits`.
    pub(super) fn shift_right(&mut self, to: Register, bits: i32) -> &mut Self {
        self.push(ALU64 | OP_RSH, to, 0, 0, bits)
    }

    /// `to /= value`, unsigned.
    pub(super) fn divide(&mut self, to: Register, value: i32) -> &mut Self {
        self.push(ALU64 | OP_DIV, to, 0, 0, value)
    }

    /// Swaps the bytes of the lower half between this machine's order and the network's, and clears the upper half.
    pub(super) fn network_order(&mut self, to: Register) -> &mut Self {
        self.push(SWAP_TO_BIG_ENDIAN, to, 0, 0, 32)
    }

    /// `to = *(at + offset)`.
    pub(super) fn load(&mut self, width: Width, to: Register, at: Register, offset: i16) -> &mut Self {
        self.push(CLASS_LOAD | width as u8, to, at as u8, offset, 0)
    }

    /// `*(at + offset) = from`.
    pub(super) fn store(&mut self, width: Width, at: Register, offset: i16, from: Register) -> &mut Self {
        self.push(CLASS_STORE | width as u8, at, from as u8, offset, 0)
    }

    /// `*(at + offset) = value`.
    pub(super) fn store_value(&mut self, width: Width, at: Register, offset: i16, value: i32) -> &mut Self {
        self.push(CLASS_STORE_IMMEDIATE | width as u8, at, 0, offset, value)
    }

    /// `to` = the map, for a helper.
    pub(super) fn map(&mut self, to: Register, map: &impl AsFd) -> &mut Self {
        self.push(CLASS_LOAD_IMMEDIATE, to, PSEUDO_MAP_FD, 0, map.as_fd().as_raw_fd()).push(0, R0, 0, 0, 0)
    }

    /// `to` = the address of the single value of an array.
    pub(super) fn map_value(&mut self, to: Register, map: &impl AsFd) -> &mut Self {
        self.push(CLASS_LOAD_IMMEDIATE, to, PSEUDO_MAP_VALUE, 0, map.as_fd().as_raw_fd()).push(0, R0, 0, 0, 0)
    }

    /// Calls a helper: arguments in `R1` to `R5`, result in `R0`.
    pub(super) fn call(&mut self, helper: Helper) -> &mut Self {
        self.push(CALL, R0, 0, 0, helper as i32)
    }

    /// Returns `R0`.
    pub(super) fn exit(&mut self) -> &mut Self {
        self.push(EXIT, R0, 0, 0, 0)
    }

    /// Jumps where all 64 bits of a register compare so with a value.
    pub(super) fn jump(&mut self, label: &'static str, left: Register, when: If, value: i32) -> &mut Self {
        self.jumps.push((self.code.len(), label));
        self.push(JUMP64 | when as u8, left, 0, 0, value)
    }

    /// Jumps where the lower 32 bits of a register compare so with a value.
    pub(super) fn jump32(&mut self, label: &'static str, left: Register, when: If, value: u32) -> &mut Self {
        self.jumps.push((self.code.len(), label));
        self.push(JUMP32 | when as u8, left, 0, 0, value as i32)
    }

    /// Jumps where two registers compare so.
    pub(super) fn jump_register(
        &mut self,
        label: &'static str,
        left: Register,
        when: If,
        right: Register,
    ) -> &mut Self {
        self.jumps.push((self.code.len(), label));
        self.push(JUMP64 | when as u8 | FROM_REGISTER, left, right as u8, 0, 0)
    }

    /// Jumps.
    pub(super) fn go(&mut self, label: &'static str) -> &mut Self {
        self.jumps.push((self.code.len(), label));
        self.push(JUMP64, R0, 0, 0, 0)
    }

    /// Where jumps to this label lead.
    pub(super) fn label(&mut self, label: &'static str) -> &mut Self {
        let before = self.labels.insert(label, self.code.len());
        assert!(before.is_none(), "label {label} stands twice");
        self
    }

    /// The encoded program.
    pub(super) fn finish(mut self) -> Vec<u64> {
        for (at, label) in self.jumps {
            let target = *self.labels.get(label).unwrap_or_else(|| panic!("no label {label}"));
            let distance =
                i16::try_from(target as i64 - at as i64 - 1).unwrap_or_else(|_| panic!("{label} is too far"));
            self.code[at] |= u64::from(distance as u16) << 16;
        }
        self.code
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_encoded_as_the_standard_says() {
        let mut a = Assembler::default();
        a.set(R0, 1).load(Word, R6, R1, 20).store(Double, R10, -8, R6).jump("end", R6, If::Equal, 2).copy(R0, R6);
        a.call(Helper::GetNetnsCookie).label("end").exit();
        let expected: [u64; 7] = [
            0x0000_0001_0000_00b7, // mov64 r0, 1
            0x0000_0000_0014_1661, // ldxw r6, [r1+20]
            0x0000_0000_fff8_6a7b, // stxdw [r10-8], r6
            0x0000_0002_0002_0615, // jeq r6, 2, +2
            0x0000_0000_0000_60bf, // mov64 r0, r6
            0x0000_007a_0000_0085, // call 122
            0x0000_0000_0000_0095, // exit
        ];
        assert_eq!(a.finish(), expected);
    }

    #[test]
    #[should_panic(expected = "no label nowhere")]
    fn a_jump_to_nowhere_is_a_bug() {
        let mut a = Assembler::default();
        a.go("nowhere").exit();
        a.finish();
    }
}
