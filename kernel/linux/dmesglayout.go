package linux

import (
	"fmt"

	"vmscope/ctype"
	"vmscope/ksym"
	"vmscope/mem"
)

// logLayout is where in the kernel's log what is (struct printk_ringbuffer,
// kernel/printk/printk_ringbuffer.h, since v5.10).
type logLayout struct {
	at mem.VA // of prb, which points to it

	Descs, Infos, CountBits, Head, Tail logPlace // in printk_ringbuffer
	Data, SizeBits                      logPlace
	State, Begin, Next                  logPlace // in prb_desc
	Seq, Time, TextLen, Facility, Level logPlace // in printk_info
	Caller, Subsys, Device              logPlace

	RingSize, DescSize, InfoSize uint64 // bytes
}

// idBits is how many bits of a state_var are an id; the other two are the state.
func (l *logLayout) idBits() uint64 { return 8*l.State.size - 2 }

// logFields are the same in the kernel's types.
type logFields struct {
	Descs     ctype.Field `c:"printk_ringbuffer.desc_ring.descs"`
	Infos     ctype.Field `c:"printk_ringbuffer.desc_ring.infos"`
	CountBits ctype.Field `c:"printk_ringbuffer.desc_ring.count_bits"`
	Head      ctype.Field `c:"printk_ringbuffer.desc_ring.head_id"`
	Tail      ctype.Field `c:"printk_ringbuffer.desc_ring.tail_id"`
	Data      ctype.Field `c:"printk_ringbuffer.text_data_ring.data"`
	SizeBits  ctype.Field `c:"printk_ringbuffer.text_data_ring.size_bits"`
	RingSize  uint64      `c:"sizeof(printk_ringbuffer)"`

	DescSize uint64      `c:"sizeof(prb_desc)"`
	State    ctype.Field `c:"prb_desc.state_var"`
	Begin    ctype.Field `c:"prb_desc.text_blk_lpos.begin"`
	Next     ctype.Field `c:"prb_desc.text_blk_lpos.next"`

	InfoSize uint64      `c:"sizeof(printk_info)"`
	Seq      ctype.Field `c:"printk_info.seq"`
	Time     ctype.Field `c:"printk_info.ts_nsec"`
	TextLen  ctype.Field `c:"printk_info.text_len"`
	Facility ctype.Field `c:"printk_info.facility"`
	Level    ctype.Field `c:"printk_info.level"`
	Caller   ctype.Field `c:"printk_info.caller_id"`
	Subsys   ctype.Field `c:"printk_info.dev_info.subsystem,optional"`
	Device   ctype.Field `c:"printk_info.dev_info.device,optional"`
}

// logPlace is a member of a struct whose bytes are at hand.
type logPlace struct {
	off, size uint64
	shift     uint8 // of a bit-field: its first bit
	bits      uint8 // and how many
}

func logPlaceOf(f ctype.Field) logPlace {
	if !f.Valid() {
		return logPlace{}
	}
	if f.BitSize != 0 {
		return logPlace{f.Offset, 1, f.BitOffset, f.BitSize}
	}
	return logPlace{off: f.Offset, size: f.Size()}
}

// uint decodes the integer at p in b.
func (p logPlace) uint(b []byte) uint64 {
	v := uintAt(b, p.off, p.size)
	if p.bits != 0 {
		return v >> p.shift & (1<<(p.bits&63) - 1)
	}
	return v
}

// bytes is the array at p in b, nil if the kernel has none.
func (p logPlace) bytes(b []byte) []byte {
	if n := uint64(len(b)); p.off > n || p.size > n-p.off {
		return nil
	}
	return b[p.off : p.off+p.size]
}

// newLogLayout takes the layout from the kernel's types, and where it has none
// from VMCOREINFO, by which dump tools find the log.
func newLogLayout(k *Kernel) (*logLayout, error) {
	l, err := logFromTypes(k)
	if err != nil && k.info != nil {
		if c, ok := logFromCoreInfo(k.info, uint64(k.Mode.PointerSize())); ok {
			l, err = c, nil
		}
	}
	if err != nil {
		return nil, err
	}
	if l.at, err = k.Symbol("prb"); err != nil {
		return nil, err
	}
	if l.State.size != 4 && l.State.size != 8 {
		return nil, fmt.Errorf("the kernel's log has descriptors with a state of %d bytes: %w", l.State.size, mem.ErrInconsistent)
	}
	for _, n := range []uint64{l.RingSize, l.DescSize, l.InfoSize} {
		if n == 0 || n > maxObject {
			return nil, fmt.Errorf("the kernel's log has a struct of %d bytes: %w", n, mem.ErrInconsistent)
		}
	}
	return l, nil
}

func logFromTypes(k *Kernel) (*logLayout, error) {
	f, err := layout[logFields](k)
	if err != nil {
		return nil, err
	}
	return &logLayout{
		Descs: logPlaceOf(f.Descs), Infos: logPlaceOf(f.Infos), CountBits: logPlaceOf(f.CountBits), Head: logPlaceOf(f.Head), Tail: logPlaceOf(f.Tail),
		Data: logPlaceOf(f.Data), SizeBits: logPlaceOf(f.SizeBits),
		State: logPlaceOf(f.State), Begin: logPlaceOf(f.Begin), Next: logPlaceOf(f.Next),
		Seq: logPlaceOf(f.Seq), Time: logPlaceOf(f.Time), TextLen: logPlaceOf(f.TextLen), Facility: logPlaceOf(f.Facility), Level: logPlaceOf(f.Level),
		Caller: logPlaceOf(f.Caller), Subsys: logPlaceOf(f.Subsys), Device: logPlaceOf(f.Device),
		RingSize: f.RingSize, DescSize: f.DescSize, InfoSize: f.InfoSize,
	}, nil
}

// logFromCoreInfo reads the layout of a kernel with words of so many bytes from VMCOREINFO
// (Documentation/admin-guide/kdump/vmcoreinfo.rst, "printk_ringbuffer").
func logFromCoreInfo(info *ksym.CoreInfo, word uint64) (*logLayout, bool) {
	ok := true
	known := func(n int64, there bool) uint64 {
		ok = ok && there && n >= 0 && n <= maxObject
		return uint64(n)
	}
	at := func(size uint64, members ...string) logPlace {
		p := logPlace{size: size}
		for _, m := range members {
			p.off += known(info.Offset(m))
		}
		return p
	}
	const ring, text = "printk_ringbuffer.desc_ring", "printk_ringbuffer.text_data_ring"
	l := &logLayout{
		Descs:     at(word, ring, "prb_desc_ring.descs"),
		Infos:     at(word, ring, "prb_desc_ring.infos"),
		CountBits: at(4, ring, "prb_desc_ring.count_bits"),
		Head:      at(word, ring, "prb_desc_ring.head_id"),
		Tail:      at(word, ring, "prb_desc_ring.tail_id"),
		Data:      at(word, text, "prb_data_ring.data"),
		SizeBits:  at(4, text, "prb_data_ring.size_bits"),
		State:     at(word, "prb_desc.state_var"),
		Begin:     at(word, "prb_desc.text_blk_lpos", "prb_data_blk_lpos.begin"),
		Next:      at(word, "prb_desc.text_blk_lpos", "prb_data_blk_lpos.next"),
		Seq:       at(8, "printk_info.seq"),
		Time:      at(8, "printk_info.ts_nsec"),
		TextLen:   at(2, "printk_info.text_len"),
		Caller:    at(4, "printk_info.caller_id"),
		RingSize:  known(info.Size("printk_ringbuffer")),
		DescSize:  known(info.Size("prb_desc")),
		InfoSize:  known(info.Size("printk_info")),
	}
	// These are not exported; they follow the length of the text (u8 facility;
	// u8 flags:5, level:3) as long as there is a struct printk_info.
	l.Facility = logPlace{off: l.TextLen.off + 2, size: 1}
	l.Level = logPlace{off: l.TextLen.off + 3, size: 1, shift: 5, bits: 3}
	subsys, there1 := info.Length("printk_info_subsystem")
	device, there2 := info.Length("printk_info_device")
	if there1 && there2 {
		l.Subsys = at(known(subsys, true), "printk_info.dev_info", "dev_printk_info.subsystem")
		l.Device = at(known(device, true), "printk_info.dev_info", "dev_printk_info.device")
	}
	return l, ok
}
