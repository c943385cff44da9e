package linux

import (
	"errors"
	"fmt"
	"time"

	"vmscope/kernel"
	"vmscope/mem"
)

// The states of prb_desc.state_var: its two highest bits, above an id.
const (
	descCommitted = 1 // whole, may yet be continued
	descFinal     = 2
)

// state parts a state_var.
func (l *logLayout) state(v uint64) (state, id uint64) { return v >> (l.idBits() & 63), v & l.ids() }

// ids are the bits of an id.
func (l *logLayout) ids() uint64 { return 1<<(l.idBits()&63) - 1 }

// Bounds of the ring. A kernel may be told to make 2 GiB of text
// (LOG_BUF_LEN_MAX); stock ones make 128 KiB to 2 MiB. It has a descriptor for
// every 32 bytes of text, of which a line takes 60 and more.
const (
	ringSizeBits = 31      // what a kernel makes
	maxSizeBits  = 27      // what is read
	maxCountBits = 26      //
	maxRecords   = 1 << 20 // the newest are read
)

// Log reads the kernel's log, oldest record first, as /dev/kmsg gives it; also
// a last record that has not ended its line, which the guest shows only once it
// has. A record that is being written is left out; so are records that were
// overwritten while they were read, which can only be the oldest. Where the log
// contradicts itself, what was read of it comes beside an ErrInconsistent.
func (v *View) Log() ([]kernel.LogRecord, error) {
	l, err := derived(v.Kernel, newLogLayout)
	if err != nil {
		return nil, err
	}
	ring, err := v.Mem.Pointer(l.at)
	if err != nil {
		return nil, err
	}
	var out []kernel.LogRecord
	err = v.settle(func() error {
		r, err := v.logReader(l, ring)
		if err != nil {
			return err
		}
		err = r.all()
		out = r.out
		return err
	})
	return out, err
}

// logReader is one pass over the ring.
type logReader struct {
	v          *View
	l          *logLayout
	descs      mem.VA
	infos      mem.VA
	data       mem.VA
	count      uint64 // of descriptors, a power of 2
	size       uint64 // of the text, bytes, a power of 2
	head, tail uint64 // ids
	text       uint64 // bytes read so far
	block      []byte
	out        []kernel.LogRecord
}

func (v *View) logReader(l *logLayout, ring mem.VA) (*logReader, error) {
	o := object{b: make([]byte, l.RingSize)}
	if err := o.read(v, ring); err != nil {
		return nil, fmt.Errorf("read the kernel's log: %w", err)
	}
	count, size := l.CountBits.uint(o.b), l.SizeBits.uint(o.b)
	switch {
	case count > maxCountBits || size > ringSizeBits || size < 5:
		return nil, errBroken("prb", ring, fmt.Sprintf("2^%d descriptors, 2^%d bytes", count, size))
	case size > maxSizeBits:
		return nil, fmt.Errorf("a log of 2^%d bytes: %w", size, errors.ErrUnsupported)
	}
	return &logReader{v: v, l: l, descs: mem.VA(l.Descs.uint(o.b)), infos: mem.VA(l.Infos.uint(o.b)), data: mem.VA(l.Data.uint(o.b)),
		count: 1 << count, size: 1 << size, head: l.Head.uint(o.b) & l.ids(), tail: l.Tail.uint(o.b) & l.ids()}, nil
}

// logChunk is how many descriptors are read at once.
const logChunk = 256

// all reads the records from tail to head. Descriptors and infos come in chunks
// that do not wrap. A chunk is read in the order of the kernel's prb_read:
// descriptors, then infos and texts, then the descriptors again; a cache is
// emptied in between, for what it kept would be of another moment.
func (r *logReader) all() error {
	ids := r.l.ids()
	n := (r.head-r.tail)&ids + 1
	if n > r.count {
		return errBroken("prb", r.descs, fmt.Sprintf("%d records in a ring of %d", n, r.count))
	}
	var cut error
	if n > maxRecords {
		cut = fmt.Errorf("the oldest %d records are left out: %w", n-maxRecords, errors.ErrUnsupported)
		r.tail = (r.tail + n - maxRecords) & ids
		n = maxRecords
	}
	chunk := min(n, logChunk)
	descs, again, infos := make([]byte, chunk*r.l.DescSize), make([]byte, chunk*r.l.DescSize), make([]byte, chunk*r.l.InfoSize)
	recs := make([]logged, 0, chunk)
	for id := r.tail; n > 0; {
		i := id & (r.count - 1)
		k := min(n, chunk, r.count-i)
		d, a, in := descs[:k*r.l.DescSize], again[:k*r.l.DescSize], infos[:k*r.l.InfoSize]
		r.v.forget()
		if _, err := r.v.Mem.Read(d, r.descs+mem.VA(i*r.l.DescSize)); err != nil {
			return fmt.Errorf("read the kernel's log: %w", err)
		}
		r.v.forget()
		if _, err := r.v.Mem.Read(in, r.infos+mem.VA(i*r.l.InfoSize)); err != nil {
			return fmt.Errorf("read the kernel's log: %w", err)
		}
		recs = recs[:0]
		for j := range k {
			desc := object{b: d[j*r.l.DescSize : (j+1)*r.l.DescSize], at: r.descs + mem.VA((i+j)*r.l.DescSize)}
			info := object{b: in[j*r.l.InfoSize : (j+1)*r.l.InfoSize], at: r.infos + mem.VA((i+j)*r.l.InfoSize)}
			rec, ok, err := r.record((id+j)&ids, &desc, &info)
			if ok || err != nil {
				recs = append(recs, logged{j, rec, err})
			}
		}
		r.v.forget()
		if _, err := r.v.Mem.Read(a, r.descs+mem.VA(i*r.l.DescSize)); err != nil {
			return fmt.Errorf("read the kernel's log: %w", err)
		}
		for _, g := range recs {
			from, to := g.desc*r.l.DescSize, (g.desc+1)*r.l.DescSize
			switch {
			case !r.l.same(d[from:to], a[from:to]):
			case g.err != nil:
				return g.err
			default:
				r.out = append(r.out, g.rec)
			}
		}
		id, n = (id+k)&ids, n-k
	}
	return cut
}

// logged is what was read of the record of one descriptor of a chunk. It counts,
// be it an error, only if the descriptor is the same afterwards.
type logged struct {
	desc uint64 // in the chunk
	rec  kernel.LogRecord
	err  error
}

// same reports whether a descriptor that was read twice is of the same record,
// whose text may have become final: up to the length that was read it is the same.
func (l *logLayout) same(was, is []byte) bool {
	s, id := l.state(l.State.uint(was))
	now, idNow := l.state(l.State.uint(is))
	return l.Begin.uint(was) == l.Begin.uint(is) && l.Next.uint(was) == l.Next.uint(is) &&
		id == idNow && (s == now || s == descCommitted && now == descFinal)
}

// record decodes one record. ok is false where it is not there: not finished, or
// already reused.
func (r *logReader) record(id uint64, desc, info *object) (rec kernel.LogRecord, ok bool, err error) {
	l := r.l
	if s, own := l.state(l.State.uint(desc.b)); own != id || s != descCommitted && s != descFinal {
		return rec, false, nil
	}
	text, ok, err := r.readText(id, l.Begin.uint(desc.b), l.Next.uint(desc.b), desc.at)
	if !ok || err != nil {
		return rec, false, err
	}
	// Ids and sequence numbers go up together: record 0 has the id -count, in 32
	// bits (DESC0_ID is the one before it) or as many as an id has, and both rise by
	// count each time a descriptor is used again.
	seq := l.Seq.uint(info.b)
	cut := 32 - min(l.idBits(), 32)
	switch ahead := (uint32(seq) - uint32(id+r.count)) << cut; {
	case ahead == 0:
	case int32(ahead) > 0 && uint64(ahead>>cut)&(r.count-1) == 0: // used again meanwhile
		return rec, false, nil
	default:
		return rec, false, errBroken("printk_info", info.at, fmt.Sprintf("record %#x has the number %d", id, seq))
	}
	if n := l.TextLen.uint(info.b); n < uint64(len(text)) {
		text = text[:n]
	}
	return kernel.LogRecord{
		Seq:       seq,
		Time:      time.Duration(l.Time.uint(info.b)),
		Facility:  int(l.Facility.uint(info.b)),
		Level:     int(l.Level.uint(info.b)),
		Caller:    caller(uint32(l.Caller.uint(info.b))),
		Text:      kernel.Text(text),
		Subsystem: kernel.Text(cstr(l.Subsys.bytes(info.b))),
		Device:    kernel.Text(cstr(l.Device.bytes(info.b))),
	}, true, nil
}

// readText reads a text block: a word with the id of its descriptor, then the
// text. It lies between two logical positions; one that would cross the end of
// the ring lies at its start instead. ok is false where the block has been
// given to another record. The slice is valid until the next call.
func (r *logReader) readText(id, begin, next uint64, at mem.VA) (text []byte, ok bool, err error) {
	word := r.l.State.size
	if begin&1 != 0 && next&1 != 0 { // no text: empty, or there was no room
		return nil, true, nil
	}
	mask := r.size - 1
	all := ^uint64(0) >> (64 - 8*word) // positions are as wide as a word, and wrap
	from, n := begin&mask, (next-begin)&all
	lap := (next - 1) & all &^ mask
	if wrapped := lap != begin&^mask; wrapped {
		if lap != (begin+r.size)&all&^mask {
			return nil, false, errBroken("prb_desc", at, fmt.Sprintf("its text lies from %#x to %#x", begin, next))
		}
		from, n = 0, next&mask
	}
	if from%word != 0 || n%word != 0 || n < word || n > r.size-from {
		return nil, false, errBroken("prb_desc", at, fmt.Sprintf("its text lies from %#x to %#x", begin, next))
	}
	// All blocks together are no larger than the ring: else they overlap.
	if r.text += n; r.text > r.size {
		return nil, false, errBroken("prb_desc", at, "its text lies in that of others")
	}
	n = min(n, word+1<<16) // a text has at most 2^16-1 bytes (u16 text_len)
	if uint64(cap(r.block)) < n {
		r.block = make([]byte, n)
	}
	b := r.block[:n]
	if _, err := r.v.Mem.Read(b, r.data+mem.VA(from)); err != nil {
		return nil, false, fmt.Errorf("read the kernel's log: %w", err)
	}
	return b[word:], uintAt(b, 0, word) == id, nil
}

// caller prints printk_info.caller_id as dmesg does.
func caller(id uint32) string {
	if id&(1<<31) != 0 {
		return fmt.Sprintf("C%d", id&^(1<<31))
	}
	return fmt.Sprintf("T%d", id)
}
