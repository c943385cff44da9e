package detect

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"vmscope"
	"vmscope/arch"
	"vmscope/kernel/linux"
	"vmscope/mem"
)

// Explanation shows the memory that a finding rests on.
type Explanation struct {
	Finding
	Places []Place `json:"places"`
}

// Place is where a piece of evidence stands, and how the guest comes there.
type Place struct {
	Number int    `json:"number"` // of the evidence, from 1
	Addr   mem.VA `json:"addr"`
	PID    int    `json:"pid,omitempty"`    // of the process whose address it is
	Symbol string `json:"symbol,omitempty"` // what Addr is nearest to
	Owner  string `json:"owner,omitempty"`  // whose code or data it is
	// Pages are the page-table entries from the root down to the page of Addr.
	Pages []PageEntry `json:"pages,omitempty"`
	PA    mem.PA      `json:"pa,omitempty"`
	Perms string      `json:"perms,omitempty"` // of all entries together, "r-x"
	// Start is where the bytes begin. Expected are the bytes that were there,
	// where they are known; else Marked is how many of Found are not as expected.
	Start    mem.VA `json:"start,omitempty"`
	Expected Bytes  `json:"expected,omitempty"`
	Found    Bytes  `json:"found,omitempty"`
	Marked   int    `json:"marked,omitempty"`
	// LeadsTo is the number of the evidence to which what is here leads; 0 for
	// none.
	LeadsTo int `json:"leads_to,omitempty"`
	// Problem is why something of it cannot be shown.
	Problem string `json:"problem,omitempty"`
}

// PageEntry is one page-table entry.
type PageEntry struct {
	Level int    `json:"level"` // 1 is the lowest
	At    mem.PA `json:"at"`
	Entry string `json:"entry"` // hexadecimal
	Perms string `json:"perms"` // of this entry alone, or "not present"
}

// Bytes are written in hexadecimal.
type Bytes []byte

// MarshalText writes the bytes in hexadecimal.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(b)), nil }

// UnmarshalText reads what MarshalText writes.
func (b *Bytes) UnmarshalText(text []byte) (err error) {
	*b, err = hex.DecodeString(string(text))
	return err
}

// Explain shows the memory behind findings of a sweep over the same look. What
// cannot be read is told in the places.
func Explain(v *vmscope.View, findings ...Finding) []Explanation {
	l := newLook(v)
	var out []Explanation
	for _, f := range findings {
		x := Explanation{Finding: f, Places: []Place{}}
		for i, e := range f.Evidence {
			if e.Addr == 0 {
				continue
			}
			p := l.place(e)
			p.Number = i + 1
			if n := len(x.Places); n > 0 && e.What == leadsThere {
				x.Places[n-1].LeadsTo = p.Number
			}
			x.Places = append(x.Places, p)
		}
		out = append(out, x)
	}
	return out
}

// leadsThere is the What of evidence to which the evidence before it leads.
const leadsThere = "where it leads"

// explained is how many bytes of a place are shown, at most.
const explained = 64

// place shows where a piece of evidence stands.
func (l *Look) place(e Evidence) Place {
	p := Place{Addr: e.Addr, Symbol: e.Symbol, Owner: e.Owner}
	s, err := l.Mem, error(nil)
	switch {
	case e.Addr >= kernelHalf:
		l.kernelPlace(&p)
	case e.pid != 0:
		p.PID = e.pid
		var t linux.Task
		if t, err = l.TaskByPID(e.pid); err == nil {
			s, err = l.SpaceOf(t)
		}
	}
	if err == nil {
		err = p.mapping(s)
	}
	if err != nil {
		p.Problem = err.Error()
	}
	if d := e.differ; d != nil {
		p.Start, p.Expected, p.Found = d.at, d.was, d.now
		return p
	}
	if err != nil {
		return p
	}
	b := make([]byte, explained)
	n, err := s.Read(b, e.Addr)
	if p.Start, p.Found = e.Addr, b[:n]; err != nil {
		p.Problem = err.Error()
	}
	if e.Expected != "" {
		p.Marked = marked(e.Found, p.Found)
	}
	return p
}

// kernelPlace names a place in the kernel's memory.
func (l *Look) kernelPlace(p *Place) {
	if p.Symbol == "" {
		p.Symbol = l.Name(p.Addr)
	}
	if code, _ := l.Code(); p.Owner == "" {
		if _, ok := code.Owner(p.Addr); ok {
			p.Owner = code.OwnerName(p.Addr)
		}
	}
}

// mapping tells how the page tables of a space lead to a place.
func (p *Place) mapping(s *mem.Space) error {
	paging, ok := s.Tr.(arch.Paging)
	if !ok {
		return fmt.Errorf("page tables of %s: %w", s.Name, errors.ErrUnsupported)
	}
	steps, _ := paging.Steps(p.Addr) // where it ends is told by Translate as well
	for _, e := range steps {
		may := "not present"
		if e.Present {
			may = perms(e.Perm)
		}
		p.Pages = append(p.Pages, PageEntry{int(e.Level), e.At, fmt.Sprintf("%#x", e.Entry), may})
	}
	m, err := s.Translate(p.Addr)
	if err != nil {
		return err
	}
	p.PA, p.Perms = m.PA, perms(m.Perm)
	return nil
}

// marked is how many of the bytes a text in Evidence.Found stands for: bytes in
// hexadecimal, or a pointer.
func marked(text string, b []byte) int {
	text, _, _ = strings.Cut(text, " ")
	text = strings.TrimSuffix(text, ",")
	var want []byte
	if digits, ok := strings.CutPrefix(text, "0x"); ok {
		to, err := strconv.ParseUint(digits, 16, 64)
		if err != nil {
			return 0
		}
		want = binary.LittleEndian.AppendUint64(nil, to)
	} else {
		var err error
		if want, err = hex.DecodeString(text); err != nil {
			return 0
		}
	}
	if !bytes.HasPrefix(b, want) {
		return 0
	}
	return len(want)
}
