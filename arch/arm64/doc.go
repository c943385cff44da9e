// Package arm64 walks the stage 1 page tables of AArch64 guests (VMSAv8-64) as
// the processor does at EL1 and EL0: Arm Architecture Reference Manual for
// A-profile (DDI 0487), chapter D8 "The AArch64 Virtual Memory System
// Architecture"; D8.2 for the tables and their levels, D8.3 for descriptors,
// D8.4 for permissions, and TCR_EL1, TTBR0_EL1, TTBR1_EL1 in D19.2.
//
// Levels are counted as everywhere in vmscope, 1 being the lowest: the manual's
// levels 3, 2, 1, 0, -1 are 1 to 5 here.
//
// The tables were written by the guest: a walk reads at most one descriptor a
// level and believes nothing else.
package arm64
