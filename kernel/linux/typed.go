package linux

import (
	"fmt"

	"vmscope/ctype"
	"vmscope/mem"
)

// globals are the types of kernel variables that monitors ask for. BTF
// describes types but, apart from per-CPU ones, no variables; these declarations
// have stood for many years, each in the file named.
var globals = map[string]string{
	"init_task":       "task_struct",       // init/init_task.c
	"init_mm":         "mm_struct",         // mm/init-mm.c
	"init_uts_ns":     "uts_namespace",     // init/version.c
	"init_net":        "net",               // net/core/net_namespace.c
	"init_pid_ns":     "pid_namespace",     // kernel/pid.c
	"init_user_ns":    "user_namespace",    // kernel/user.c
	"init_fs":         "fs_struct",         // fs/fs_struct.c
	"init_files":      "files_struct",      // fs/file.c
	"init_cred":       "cred",              // kernel/cred.c
	"modules":         "list_head",         // kernel/module/main.c
	"super_blocks":    "list_head",         // fs/super.c
	"iomem_resource":  "resource",          // kernel/resource.c
	"ioport_resource": "resource",          // kernel/resource.c
	"jiffies_64":      "u64",               // kernel/time/timer.c
	"nr_threads":      "int",               // kernel/fork.c
	"panic_timeout":   "int",               // kernel/panic.c
	"total_forks":     "long unsigned int", // kernel/fork.c
}

// Var is a kernel variable as a typed object. A kernel says the types of few of
// its variables; those that vmscope knows can be had so (init_task, modules,
// total_forks, …). For any other, say the type with At.
func (v *View) Var(name string) (ctype.Object, error) {
	typ, ok := globals[name]
	if !ok {
		return ctype.Object{}, fmt.Errorf("the type of kernel variable %q is not known: say it with At", name)
	}
	return v.At(name, typ)
}

// At is the object of the given C type at a kernel symbol.
func (v *View) At(symbol, typ string) (ctype.Object, error) {
	at, err := v.Symbol(symbol)
	if err != nil {
		return ctype.Object{}, err
	}
	return v.Object(at, typ)
}

// Object is the object of the given C type at an address of the kernel.
func (v *View) Object(at mem.VA, typ string) (ctype.Object, error) {
	t, err := v.typeNamed(typ)
	if err != nil {
		return ctype.Object{}, err
	}
	return t.At(v.Mem, at), nil
}

func (v *View) typeNamed(name string) (ctype.Type, error) {
	types, err := v.NeedTypes()
	if err != nil {
		return ctype.Type{}, err
	}
	return types.Lookup(name)
}

// Objects walks the list whose head is a kernel symbol and gives each object on
// it: Objects("modules", "module", "list", …) gives the modules, since each
// struct module hangs in that list by its member list.
//
// A running guest may change the list, and free an object, while it is walked;
// see List. An ErrInconsistent or a mem.ErrNotMapped then says nothing but that:
// begin again, with nothing of what each was given. Where the kernel protects
// the list by RCU (tasks, modules) that is rare. Tasks, Modules and their like
// begin again by themselves.
func (v *View) Objects(head, typ, member string, each func(ctype.Object) error) error {
	at, err := v.Symbol(head)
	if err != nil {
		return err
	}
	t, err := v.typeNamed(typ)
	if err != nil {
		return err
	}
	return v.ObjectsAt(at, t, member, each)
}

// ObjectsIn is Objects for a list whose head is a member of an object, at a
// path as Object.Field takes it: ObjectsIn(task, "children", "task_struct",
// "sibling", …) gives the processes that a task has started.
func (v *View) ObjectsIn(o ctype.Object, path, typ, member string, each func(ctype.Object) error) error {
	head, err := o.Field(path)
	if err != nil {
		return err
	}
	t, err := v.typeNamed(typ)
	if err != nil {
		return err
	}
	return v.ObjectsAt(head.Addr, t, member, each)
}

// ObjectsAt is Objects for a list head at an address.
func (v *View) ObjectsAt(head mem.VA, t ctype.Type, member string, each func(ctype.Object) error) error {
	off, err := t.Offset(member)
	if err != nil {
		return err
	}
	return v.List(head, func(node mem.VA) error { return each(t.At(v.Mem, node-mem.VA(off))) })
}
