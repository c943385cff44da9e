package linux

import (
	"vmscope/ctype"
	"vmscope/kernel"
)

// utsLayout is what is read of struct uts_namespace
// (include/linux/utsname.h).
type utsLayout struct {
	Node ctype.Field `c:"uts_namespace.name.nodename"`
}

// Hostname is the guest's host name: uname -n in its initial UTS namespace.
func (v *View) Hostname() (kernel.Text, error) {
	l, err := layout[utsLayout](v.Kernel)
	if err != nil {
		if n, uerr := v.utsName(); uerr == nil {
			return kernel.Text(n.node), nil
		}
		return "", err
	}
	at, err := v.Symbol("init_uts_ns")
	if err != nil {
		return "", err
	}
	b, err := v.Mem.CString(l.Node.At(at), int(l.Node.Size()))
	return kernel.Text(b), err
}
