package arm64_test

import "encoding/binary"

// assembler makes words of A64 (DDI 0487, chapter C6); labels may be used before they are set.
type assembler struct {
	words  []uint32
	labels map[string]int
	fixups []func()
}

func (a *assembler) emit(words ...uint32) { a.words = append(a.words, words...) }
func (a *assembler) label(name string)    { a.labels[name] = len(a.words) }

// at goes on at an offset of bytes.
func (a *assembler) at(offset int) {
	for len(a.words) < offset/4 {
		a.emit(0) // UDF
	}
}

// to is a word that needs the distance to a label, in words.
func (a *assembler) to(name string, word func(distance uint32) uint32) {
	here := len(a.words)
	a.emit(0)
	a.fixups = append(a.fixups, func() { a.words[here] = word(uint32(a.labels[name] - here)) })
}

// bytes is the program.
func (a *assembler) bytes() (b []byte) {
	for _, fix := range a.fixups {
		fix()
	}
	for _, w := range a.words {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	return b
}

type x uint32 // a general register

const (
	isb  = 0xd5033fdf
	dsb  = 0xd5033f9f
	eret = 0xd69f03e0
	wfi  = 0xd503207f
	hvc  = 0xd4000002
)

func (a *assembler) mov(d x, v uint64) {
	for i := range uint32(4) {
		op := uint32(0xf2800000) // MOVK
		if i == 0 {
			op = 0xd2800000 // MOVZ
		}
		a.emit(op | i<<21 | uint32(v>>(16*i)&0xffff)<<5 | uint32(d))
	}
}

func (a *assembler) ldr(t, n x, offset uint32) {
	a.emit(0xf9400000 | offset/8<<10 | uint32(n)<<5 | uint32(t))
}
func (a *assembler) str(t, n x, offset uint32) {
	a.emit(0xf9000000 | offset/8<<10 | uint32(n)<<5 | uint32(t))
}
func (a *assembler) add(d, n x, v uint32) { a.emit(0x91000000 | v<<10 | uint32(n)<<5 | uint32(d)) }
func (a *assembler) sub(d, n x, v uint32) { a.emit(0xd1000000 | v<<10 | uint32(n)<<5 | uint32(d)) }

// low keeps the lowest n bits (AND), lsl1 is LSL by one, or1 is ORR with 1.
func (a *assembler) low(d x, n uint32) { a.emit(0x92400000 | (n-1)<<10 | uint32(d)<<5 | uint32(d)) }
func (a *assembler) lsl1(d x)          { a.emit(0xd37ff800 | uint32(d)<<5 | uint32(d)) }
func (a *assembler) or1(d x)           { a.emit(0xb2400000 | uint32(d)<<5 | uint32(d)) }
func (a *assembler) br(n x)            { a.emit(0xd61f0000 | uint32(n)<<5) }

func (a *assembler) b(name string) {
	a.to(name, func(d uint32) uint32 { return 0x14000000 | d&(1<<26-1) })
}
func (a *assembler) cbz(t x, name string) {
	a.to(name, func(d uint32) uint32 { return 0xb4000000 | d&(1<<19-1)<<5 | uint32(t) })
}
func (a *assembler) adr(t x, name string) {
	a.to(name, func(d uint32) uint32 { return 0x10000000 | d&(1<<19-1)<<5 | uint32(t) })
}

// system is a system register, or operation of SYS, by op0, op1, CRn, CRm, op2 (C5.2, C5.3).
func system(op0, op1, crn, crm, op2 uint32) uint32 {
	return 0xd5000000 | op0<<19 | op1<<16 | crn<<12 | crm<<8 | op2<<5
}

var (
	tcrEL1   = system(3, 0, 2, 0, 2)
	ttbr0EL1 = system(3, 0, 2, 0, 0)
	ttbr1EL1 = system(3, 0, 2, 0, 1)
	mairEL1  = system(3, 0, 10, 2, 0)
	sctlrEL1 = system(3, 0, 1, 0, 0)
	vbarEL1  = system(3, 0, 12, 0, 0)
	esrEL1   = system(3, 0, 5, 2, 0)
	parEL1   = system(3, 0, 7, 4, 0)
	hcrEL2   = system(3, 4, 1, 1, 0)
	vbarEL2  = system(3, 4, 12, 0, 0)
	elrEL2   = system(3, 4, 4, 0, 1)
	spsrEL2  = system(3, 4, 4, 0, 0)
	esrEL2   = system(3, 4, 5, 2, 0)

	tlbiALLE1 = system(1, 4, 8, 7, 4)
	// AT S1E1R, S1E1W, S1E0R, S1E0W: what EL1 and EL0 come to that read and write.
	atS1 = [4]uint32{system(1, 0, 7, 8, 0), system(1, 0, 7, 8, 1), system(1, 0, 7, 8, 2), system(1, 0, 7, 8, 3)}
)

func (a *assembler) msr(reg uint32, t x) { a.emit(reg | uint32(t)) }
func (a *assembler) mrs(t x, reg uint32) { a.emit(reg | 1<<21 | uint32(t)) }

// The records that the program goes over, of words of 64 bits. It writes what it
// finds behind what it is given.
const (
	recordSize = 128

	// Of a regime: registers to set, the questions and their number; as the
	// registers read then.
	regimeTCR, regimeTTBR0, regimeTTBR1, regimeVBAR, regimeQuestions, regimeCount = 0, 8, 16, 24, 32, 40
	regimeSaysTCR, regimeSaysTTBR0, regimeSaysTTBR1                               = 48, 56, 64

	// Of a question: the address, whether to jump there; PAR_EL1 of the four AT,
	// and of the jumps at EL1 and at EL0 where ESR_EL1 and ELR_EL2 stand then.
	questionVA, questionJump, questionPAR, questionEL1, questionEL0 = 0, 8, 16, 48, 64
)

// askProgram asks the processor, at EL2 and with its own translation off, how the tables
// of EL1 and EL0 translate: for each regime it sets the registers, for each question
// it does the four AT, and has EL1 and then EL0 execute what is at the address, an
// HVC. That comes back to EL2, at EL0 by way of EL1, to which faults go as well
// and where all vectors are an HVC. It runs at base, goes over the regimes at the
// given address up to one without questions, and then sets the word at done to 1.
func askProgram(base, regimes, done uint64) []byte {
	const regime, question, resume, count = x(19), x(20), x(21), x(22)
	const vectors = 0x800
	a := &assembler{labels: map[string]int{}}
	a.mov(0, base+vectors)
	a.msr(vbarEL2, 0)
	a.mov(0, 1<<31) // HCR_EL2.RW: EL1 is AArch64
	a.msr(hcrEL2, 0)
	a.mov(0, ^uint64(0)) // all attributes are normal memory
	a.msr(mairEL1, 0)
	a.mov(0, 0x30d00801) // SCTLR_EL1: what is RES1, and M
	a.msr(sctlrEL1, 0)
	a.mov(regime, regimes)

	a.label("regime")
	a.ldr(count, regime, regimeCount)
	a.cbz(count, "done")
	for reg, offset := range map[uint32]uint32{tcrEL1: regimeTCR, ttbr0EL1: regimeTTBR0, ttbr1EL1: regimeTTBR1, vbarEL1: regimeVBAR} {
		a.ldr(0, regime, offset)
		a.msr(reg, 0)
	}
	a.emit(isb)
	a.msr(tlbiALLE1, 31)
	a.emit(dsb, isb)
	for reg, offset := range map[uint32]uint32{tcrEL1: regimeSaysTCR, ttbr0EL1: regimeSaysTTBR0, ttbr1EL1: regimeSaysTTBR1} {
		a.mrs(0, reg)
		a.str(0, regime, offset)
	}
	a.ldr(question, regime, regimeQuestions)

	a.label("question")
	a.ldr(1, question, questionVA)
	for i, at := range atS1 {
		a.msr(at, 1)
		a.emit(isb)
		a.mrs(2, parEL1)
		a.str(2, question, questionPAR+8*uint32(i))
	}
	a.ldr(2, question, questionJump)
	a.cbz(2, "next")
	for name, to := range map[string]struct {
		spsr   uint64
		offset uint32
	}{"EL1": {0x3c5, questionEL1}, "EL0": {0x3c0, questionEL0}} { // EL1h and EL0t, no interrupts
		a.msr(esrEL1, 31)
		a.mov(0, to.spsr)
		a.msr(spsrEL2, 0)
		a.msr(elrEL2, 1)
		a.adr(resume, name)
		a.emit(eret)
		a.label(name)
		a.mrs(0, esrEL1)
		a.str(0, question, to.offset)
		a.mrs(0, elrEL2)
		a.str(0, question, to.offset+8)
	}
	a.label("next")
	a.add(question, question, recordSize)
	a.sub(count, count, 1)
	a.cbz(count, "last")
	a.b("question")
	a.label("last")
	a.add(regime, regime, recordSize)
	a.b("regime")

	a.label("done")
	a.mov(0, done)
	a.mov(1, 1)
	a.str(1, 0, 0)
	a.label("end")
	a.emit(wfi)
	a.b("end")

	a.at(vectors + 0x200) // of EL2 itself: an AT that cannot read a table (D8.17); PAR_EL1 is made to say so
	a.mrs(9, esrEL2)
	a.low(9, 6)
	a.lsl1(9)
	a.or1(9)
	a.msr(parEL1, 9)
	a.mrs(9, elrEL2)
	a.add(9, 9, 4)
	a.msr(elrEL2, 9)
	a.emit(eret)
	a.at(vectors + 0x400) // of a lower level: the HVC
	a.br(resume)
	return a.bytes()
}
