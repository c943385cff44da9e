package detect

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/klauspost/compress/zstd"

	"vmscope"
)

// ReferenceName names the boot of a guest's kernel, for a file to keep its
// Reference in: 16 characters, the same in every look at that boot. Another boot
// has another name, but for the few that get the same slide of KASLR; those the
// Reference itself tells apart, by the clock.
func ReferenceName(v *vmscope.View) string { return bootOf(v).name() }

// Name is the ReferenceName of what it refers to.
func (r *Reference) Name() string { return r.boot.name() }

func (b boot) name() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%#x\x00%#x\x00%#x", b.Banner, uint64(b.Text), uint64(b.Phys), uint64(b.Root)))
	return hex.EncodeToString(sum[:8])
}

// A saved reference is a zstd stream: a line of JSON, and the bytes of the runs
// in its order.
type referenceHeader struct {
	Format int         `json:"format"`
	Boot   boot        `json:"boot"`
	Runs   []runHeader `json:"runs"`
}

type runHeader struct {
	runKey
	Bytes []byte `json:"name"` // the name; JSON has no strings of any bytes
	Odd   []int  `json:"odd,omitempty"`
}

const (
	referenceFormat = 1
	maxHeader       = 8 << 20 // bytes of the line; thousands of modules take less than 1 MiB
	maxWindow       = 8 << 20 // of zstd; ours is smaller
)

// Save writes the reference, for LoadReference. It holds the text and the
// read-only data of the guest's kernel, to be kept as private as those.
func (r *Reference) Save(w io.Writer) error {
	h := referenceHeader{Format: referenceFormat, Boot: r.boot}
	for _, m := range r.runs {
		h.Runs = append(h.Runs, m.header())
	}
	slices.SortFunc(h.Runs, func(a, b runHeader) int { return bytes.Compare(a.order(), b.order()) })
	line, err := json.Marshal(h)
	if err != nil {
		return err
	}
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(1<<20))
	if err != nil {
		return err
	}
	_, err = z.Write(append(line, '\n'))
	for _, one := range h.Runs {
		if err != nil {
			break
		}
		_, err = z.Write(r.runs[one.runKey].was)
	}
	if err = errors.Join(err, z.Close()); err != nil {
		return fmt.Errorf("save the reference: %w", err)
	}
	r.grown = false
	return nil
}

// order gives the runs of a file an order, the same each time.
func (k runKey) order() []byte {
	return fmt.Appendf(nil, "%s %016x %016x %s %s %d", k.Part, uint64(k.Start), k.Size, k.Kind, k.Name, k.Load)
}

// LoadReference reads what Save wrote. What it holds counts in a look if the
// guest still runs the same boot of the same kernel; else the reference begins
// anew. The bytes read may be anybody's: they are bounded, and what does not hold
// together is an error.
func LoadReference(from io.Reader) (*Reference, error) {
	r, err := loadReference(from)
	if err != nil {
		return nil, fmt.Errorf("load the reference: %w", err)
	}
	return r, nil
}

func loadReference(from io.Reader) (*Reference, error) {
	z, err := zstd.NewReader(from, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	b := bufio.NewReaderSize(z, 64<<10)
	var line []byte
	for {
		part, err := b.ReadSlice('\n')
		if line = append(line, part...); len(line) > maxHeader {
			return nil, fmt.Errorf("a header of more than %d bytes", maxHeader)
		}
		if err == nil {
			break
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return nil, short(err)
		}
	}
	var h referenceHeader
	if err := json.Unmarshal(line, &h); err != nil {
		return nil, err
	}
	if h.Format != referenceFormat {
		return nil, fmt.Errorf("format %d, which is not known", h.Format)
	}
	r := &Reference{boot: h.Boot, runs: make(map[runKey]*run, len(h.Runs))}
	total := uint64(0)
	for _, one := range h.Runs {
		m, err := one.run()
		if err != nil {
			return nil, err
		}
		if total += m.Size; total > 2*maxReference || r.runs[m.runKey] != nil {
			return nil, fmt.Errorf("more than %d MiB, or the same twice", 2*maxReference>>20)
		}
		var was bytes.Buffer // grows as the bytes come, not as the header has it
		if n, err := io.CopyN(&was, b, int64(one.Size)); err != nil {
			return nil, fmt.Errorf("%d of %d bytes at %#x: %w", n, one.Size, uint64(one.Start), short(err))
		}
		m.was = bytes.Clone(was.Bytes())
		r.runs[m.runKey] = m
	}
	if _, err := b.ReadByte(); !errors.Is(err, io.EOF) {
		return nil, errors.Join(errors.New("more bytes than the header tells of"), err)
	}
	return r, nil
}

// short is an end that came too early.
func short(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
