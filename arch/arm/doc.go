// Package arm walks the stage 1 page tables of 32-bit Arm guests (VMSAv7, and
// VMSAv8-32, which is the same) as the processor does at PL1 and PL0: Arm
// Architecture Reference Manual, ARMv7-A and ARMv7-R edition (DDI 0406C), part B3
// "Virtual Memory System Architecture"; B3.5 for short descriptors, B3.6 for long
// ones (the Large Physical Address Extension), B3.7 for permissions, and TTBCR,
// TTBR0, TTBR1, SCTLR in B4.1.
//
// Levels are counted as everywhere in vmscope, 1 being the lowest: the manual's
// second and first level of short descriptors are 1 and 2 here, its levels 3, 2
// and 1 of long ones are 1, 2 and 3.
//
// The tables were written by the guest: a walk reads at most one descriptor a
// level and believes nothing else.
package arm
