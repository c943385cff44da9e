package dump

import (
	"encoding/binary"
	"slices"

	"vmscope/mem"
	"vmscope/vm"
)

// Note is an entry of an ELF core's PT_NOTE segment.
type Note struct {
	Name string
	Type uint32
	Desc []byte
}

// The types of the notes that Linux writes under the name CORE
// (include/uapi/linux/elf.h).
const (
	ntPRStatus = 1
	ntPRPSInfo = 3
	ntAuxV     = 6
	ntFile     = 0x46494c45
)

// UserRegs are the words of struct user_regs_struct of x86-64: r15 r14 r13 r12
// rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss
// fs_base gs_base ds es fs gs (arch/x86/include/asm/user_64.h).
type UserRegs [27]uint64

// Indices of UserRegs.
const (
	RegRIP    = 16
	RegCS     = 17
	RegRFLAGS = 18
	RegRSP    = 19
	RegSS     = 20
	RegGSBase = 22
)

// sizePRStatus is that of struct elf_prstatus (include/linux/elfcore.h), of
// which pr_reg starts at regsPRStatus.
const (
	sizePRStatus = 336
	regsPRStatus = 112
)

// ThreadNote is the NT_PRSTATUS of a thread, or of a CPU in a machine's core.
func ThreadNote(pid, ppid int, regs *UserRegs) Note {
	le := binary.LittleEndian
	b := make([]byte, sizePRStatus)
	le.PutUint32(b[32:], uint32(pid))
	le.PutUint32(b[36:], uint32(ppid))
	for i, r := range regs {
		le.PutUint64(b[regsPRStatus+8*i:], r)
	}
	return Note{"CORE", ntPRStatus, b}
}

// generalAt is where UserRegs has each of vm.Registers.General.
var generalAt = [16]int{10, 11, 12, 5, RegRSP, 4, 13, 14, 9, 8, 7, 6, 3, 2, 1, 0}

// CPUNotes tell the registers of a machine's vCPUs: NT_PRSTATUS for drgn, and
// the note of QEMU, which also has system registers, for crash and Open; and two
// of ours for what neither has.
func CPUNotes(cpus []vm.Registers) []Note {
	var notes []Note
	for _, r := range cpus {
		var u UserRegs
		for i, at := range generalAt {
			u[at] = r.General[i]
		}
		u[RegRIP], u[RegCS], u[RegRFLAGS] = r.RIP, uint64(r.CS), r.RFLAGS
		u[RegRSP], u[RegSS], u[RegGSBase] = r.RSP, uint64(r.SS), r.GSBase
		notes = append(notes, ThreadNote(0, 0, &u))
	}
	for _, r := range cpus {
		if !r.Valid {
			break
		}
		b := make([]byte, cpuSize)
		binary.LittleEndian.PutUint32(b, 1)
		binary.LittleEndian.PutUint32(b[4:], cpuSize)
		put := func(off int, v uint64) { binary.LittleEndian.PutUint64(b[off:], v) }
		r.General[4] = r.RSP
		for i, g := range cpuOrder {
			put(cpuGeneral+8*i, r.General[g])
		}
		put(cpuRIP, r.RIP)
		put(cpuRFLAGS, r.RFLAGS)
		put(segCS, uint64(r.CS))
		put(segSS, uint64(r.SS))
		put(segGS+segBase, r.GSBase)
		put(segGDT+segBase, r.GDTBase)
		put(segIDT+segBase, r.IDTBase)
		put(cpuCR, r.CR0)
		put(cpuCR+3*8, r.CR3)
		put(cpuCR+4*8, r.CR4)
		put(cpuKGS, r.KernelGS)
		notes = append(notes, Note{"QEMU", 0, b})
	}
	pairs := func(typ uint32, told func(vm.Registers) bool, of func(vm.Registers) (uint64, uint64)) {
		if !slices.ContainsFunc(cpus, func(r vm.Registers) bool { return r.Valid && told(r) }) {
			return
		}
		var b []byte
		for _, r := range cpus {
			one, two := of(r)
			b = binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(b, one), two)
		}
		notes = append(notes, Note{noteBundle, typ, b})
	}
	pairs(ntMSRs, func(r vm.Registers) bool { return r.LSTAR != 0 }, func(r vm.Registers) (uint64, uint64) { return r.EFER, r.LSTAR })
	pairs(ntEntries, func(r vm.Registers) bool { return r.CSTAR|r.SysenterEIP != 0 }, func(r vm.Registers) (uint64, uint64) { return r.CSTAR, r.SysenterEIP })
	return notes
}

// ProcessInfo is what NT_PRPSINFO tells of a process.
type ProcessInfo struct {
	PID, PPID int
	UID, GID  uint32
	State     byte   // letter, as in ps(1)
	Name      string // cut after 15 bytes
	Args      string // cut after 79
}

// Note encodes struct elf_prpsinfo (include/linux/elfcore.h).
func (p *ProcessInfo) Note() Note {
	le := binary.LittleEndian
	b := make([]byte, 136)
	b[1] = p.State
	for i, v := range []uint32{p.UID, p.GID, uint32(p.PID), uint32(p.PPID)} {
		le.PutUint32(b[16+4*i:], v)
	}
	copy(b[40:55], p.Name)
	copy(b[56:135], p.Args)
	return Note{"CORE", ntPRPSInfo, b}
}

// AuxVNote is the NT_AUXV of a process: the vector as the kernel keeps it.
func AuxVNote(vector []byte) Note { return Note{"CORE", ntAuxV, vector} }

// CoreInfoNote holds the kernel's VMCOREINFO, as the notes of /proc/vmcore do.
func CoreInfoNote(text string) Note { return Note{"VMCOREINFO", 0, []byte(text)} }

// MappedFile is a file that a process has mapped, at Off bytes from its start.
type MappedFile struct {
	Start, End mem.VA
	Off        uint64
	Path       string
}

// FilesNote is the NT_FILE of a process (fill_files_note in fs/binfmt_elf.c).
func FilesNote(files []MappedFile) Note {
	le := binary.LittleEndian
	b := le.AppendUint64(nil, uint64(len(files)))
	b = le.AppendUint64(b, mem.PageSize)
	for _, f := range files {
		b = le.AppendUint64(b, uint64(f.Start))
		b = le.AppendUint64(b, uint64(f.End))
		b = le.AppendUint64(b, f.Off/mem.PageSize)
	}
	for _, f := range files {
		b = append(append(b, f.Path...), 0)
	}
	return Note{"CORE", ntFile, b}
}

func encodeNotes(notes []Note) []byte {
	var b []byte
	le := binary.LittleEndian
	for _, n := range notes {
		b = le.AppendUint32(b, uint32(len(n.Name)+1))
		b = le.AppendUint32(b, uint32(len(n.Desc)))
		b = le.AppendUint32(b, n.Type)
		for _, part := range [][]byte{append([]byte(n.Name), 0), n.Desc} {
			b = append(b, part...)
			b = append(b, make([]byte, align(uint64(len(part)), 4)-uint64(len(part)))...)
		}
	}
	return b
}
