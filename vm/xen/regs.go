package xen

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"vmscope/internal/xenguest"
	"vmscope/vm"
)

// maxVCPUs is the most that Xen gives a domain (XEN_LEGACY_MAX_VCPUS and beyond: HVM_MAX_VCPUS is 128, PV domains may have
// 8192).
const maxVCPUs = 8192

// CPUs reads the registers of all vCPUs that are online. Xen stops each for that moment. Of a PV guest CR3 is its kernel's
// table, in the guest's numbers, also while it runs in user mode.
func (m *machine) CPUs(ctx context.Context) ([]vm.Registers, error) {
	var out []vm.Registers
	for v := range min(m.domain.maxVCPU, maxVCPUs-1) + 1 {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		var r vm.Registers
		var err error
		if m.pv != nil {
			r, err = m.pvRegisters(v)
		} else {
			r, err = m.hvmRegisters(v)
		}
		if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) && v > 0 {
			continue // offline
		}
		if err != nil {
			return nil, fmt.Errorf("registers of vCPU %d: %w", v, err)
		}
		out = append(out, r)
	}
	return out, nil
}

// hvmCPU is the type of a vCPU's record in the context of an HVM domain (hvm/save.h, CPU).
const hvmCPU = 2

func (m *machine) hvmRegisters(v uint32) (vm.Registers, error) {
	// struct xen_domctl_hvmcontext_partial: type, instance, bufsz, buffer.
	union := le.AppendUint32(nil, hvmCPU)
	union = le.AppendUint32(union, v)
	union = le.AppendUint64(union, hvmCPUSize)
	union = le.AppendUint64(union, m.host.address(extraAt))
	r, err := m.host.control(domctlHVMContextPart, m.domain.ID, union, make([]byte, hvmCPUSize))
	if err != nil {
		return vm.Registers{}, err
	}
	return parseHVMCPU(r.extra)
}

// hvmCPUSize has room for struct hvm_hw_cpu and more.
const hvmCPUSize = 4096

// parseHVMCPU reads struct hvm_hw_cpu (arch-x86/hvm/save.h), which has been the same up to what is read here since Xen 3.4.
func parseHVMCPU(b []byte) (vm.Registers, error) {
	if len(b) < 1000 {
		return vm.Registers{}, fmt.Errorf("vCPU of %d bytes", len(b))
	}
	u := func(at int) uint64 { return le.Uint64(b[at:]) }
	return vm.Registers{
		CR0: u(656), CR3: u(672), CR4: u(680), EFER: u(992),
		RIP: u(640), RFLAGS: u(648), RSP: u(568),
		CS: uint16(le.Uint32(b[736:])), SS: uint16(le.Uint32(b[756:])),
		GSBase: u(840), KernelGS: u(944), IDTBase: u(872), GDTBase: u(880),
		LSTAR: u(960), CSTAR: u(976), SysenterEIP: u(936),
		// rax rbx rcx rdx rbp rsi rdi rsp r8 …, from 512 on.
		General: [16]uint64{
			u(512), u(528), u(536), u(520), u(568), u(544), u(552), u(560),
			u(576), u(584), u(592), u(600), u(608), u(616), u(624), u(632),
		},
		Valid: true,
	}, nil
}

func (m *machine) pvRegisters(v uint32) (vm.Registers, error) {
	// struct xen_domctl_vcpucontext: vcpu, pointer.
	union := le.AppendUint64(nil, uint64(v))
	union = le.AppendUint64(union, m.host.address(extraAt))
	res, err := m.host.control(domctlVCPUContext, m.domain.ID, union, make([]byte, xenguest.ContextSize))
	if err != nil {
		return vm.Registers{}, err
	}
	r, err := xenguest.Registers(res.extra, true)
	if err != nil {
		return r, err
	}
	err = m.pv.tables(func(t *p2m) error {
		page, err := m.pv.number(t, r.CR3>>12)
		r.CR3 = page << 12
		return err
	})
	return r, err
}
