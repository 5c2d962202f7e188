// Package house tests what can be read: the rules that the source keeps, and that documents
// say what is true of it.
//
// It holds tests alone, which run in the folder of the module, see TestMain. They may use
// redial and what is in internal/testkit, and read every file of the repository.
package house
