package gdb

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"strings"

	"vmscope/vm"
)

// register says where a register is in the answer to "g".
type register struct {
	name string
	off  int // bytes
	size int
}

// feature is a target description, or a part of one (GDB manual, appendix G).
type feature struct {
	Architecture string `xml:"architecture"`
	Features     []struct {
		Regs []reg `xml:"reg"`
	} `xml:"feature"`
	Regs     []reg `xml:"reg"`
	Includes []struct {
		Href string `xml:"href,attr"`
	} `xml:"include"`
}

type reg struct {
	Name string `xml:"name,attr"`
	Bits int    `xml:"bitsize,attr"`
}

// maxRegisters bounds a description.
const maxRegisters = 4096

// describe reads the target description: the architecture, and the registers in
// their order.
func (s *session) describe() (arch string, regs []register, err error) {
	off := 0
	take := func(l []reg) error {
		for _, r := range l {
			if r.Bits <= 0 || r.Bits > 1<<16 || r.Bits%8 != 0 || len(regs) > maxRegisters {
				return fmt.Errorf("target description: register %q of %d bits: %w", r.Name, r.Bits, errProtocol)
			}
			regs = append(regs, register{r.Name, off, r.Bits / 8})
			off += r.Bits / 8
		}
		return nil
	}
	part := func(annex string) (f feature, err error) {
		b, err := s.object("features", annex)
		if err != nil {
			return f, err
		}
		d := xml.NewDecoder(strings.NewReader(string(b)))
		d.Strict = false
		if err = d.Decode(&f); err != nil {
			return f, fmt.Errorf("target description %q: %w", annex, err)
		}
		err = take(f.Regs)
		for _, x := range f.Features {
			err = errors.Join(err, take(x.Regs))
		}
		return f, err
	}
	top, err := part("target.xml")
	if err != nil {
		return "", nil, err
	}
	for _, i := range top.Includes[:min(len(top.Includes), 64)] { // they nest no deeper
		if strings.ContainsAny(i.Href, ":,;#$}*") {
			return "", nil, fmt.Errorf("target description: included %q: %w", i.Href, errProtocol)
		}
		if _, err := part(i.Href); err != nil {
			return "", nil, err
		}
	}
	return strings.TrimSpace(top.Architecture), regs, nil
}

// generalNames are the names of vm.Registers.General.
var generalNames = [16]string{
	"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
	"r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
}

// registers reads those of all vCPUs, which are threads to the stub.
func (s *session) registers() ([]vm.Registers, error) {
	arch, desc, err := s.describe()
	if err != nil {
		return nil, err
	}
	if arch != "i386:x86-64" {
		return nil, fmt.Errorf("registers of %.40q: %w", arch, errors.ErrUnsupported)
	}
	threads, err := s.threads()
	if err != nil {
		return nil, err
	}
	var out []vm.Registers
	for _, t := range threads {
		if ok, err := s.ask("Hg" + t); err != nil || ok != "OK" {
			return nil, fmt.Errorf("select vCPU %s: %.40q, %w", t, ok, errors.Join(err, errProtocol))
		}
		text, err := s.ask("g")
		if err != nil {
			return nil, err
		}
		// What is not known stands as x.
		b, err := hex.DecodeString(strings.ReplaceAll(text, "x", "0"))
		if err != nil {
			return nil, errProtocol
		}
		out = append(out, pick(desc, b))
	}
	return out, nil
}

// pick takes the registers that count out of the bytes of all.
func pick(desc []register, b []byte) (r vm.Registers) {
	value := make(map[string]uint64)
	for _, d := range desc {
		if d.size > 8 || d.off+d.size > len(b) {
			continue
		}
		var v [8]byte
		copy(v[:], b[d.off:d.off+d.size])
		value[d.name] = binary.LittleEndian.Uint64(v[:])
	}
	for i, n := range generalNames {
		r.General[i] = value[n]
	}
	r.RIP, r.RSP, r.RFLAGS = value["rip"], value["rsp"], value["eflags"]
	r.CS, r.SS = uint16(value["cs"]), uint16(value["ss"])
	r.GSBase, r.KernelGS = value["gs_base"], value["k_gs_base"]
	r.CR0, r.CR3, r.CR4, r.EFER = value["cr0"], value["cr3"], value["cr4"], value["efer"]
	_, cr3 := value["cr3"]
	_, cr4 := value["cr4"]
	r.Valid = cr3 && cr4
	return r
}

// threads lists the ids of the vCPUs.
func (s *session) threads() ([]string, error) {
	var out []string
	for packet := "qfThreadInfo"; len(out) < maxRegisters; packet = "qsThreadInfo" {
		text, err := s.ask(packet)
		switch {
		case err != nil:
			return nil, err
		case text == "l":
			return out, nil
		case !strings.HasPrefix(text, "m") || len(text) < 2 || strings.ContainsAny(text, "$#}*"):
			return nil, fmt.Errorf("list vCPUs: the stub answers %.40q", text)
		}
		out = append(out, strings.Split(text[1:], ",")...)
	}
	return nil, errProtocol
}

// CPUs reads the registers of all vCPUs. The guest stops for that moment.
func (m *machine) CPUs(context.Context) (r []vm.Registers, err error) {
	err = m.do(func(s *session) error {
		r, err = s.registers()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the registers: %w", err)
	}
	return r, nil
}
